/**
 * The look of controls that several elements share: buttons, fields, chips, marks, skeletons. An element adopts it:
 * `static styles = [controls, css`...`]`.
 */

import { css } from "lit";

export const controls = css`
  :host {
    display: block;
  }
  :host([hidden]),
  [hidden] {
    display: none !important;
  }
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }
  h1,
  h2,
  h3,
  p,
  ul,
  ol,
  dl,
  dd,
  figure {
    margin: 0;
    padding: 0;
  }
  h1 {
    font-size: var(--text-xl);
    line-height: 32px;
    font-weight: var(--strong);
    letter-spacing: -0.01em;
  }
  h2 {
    font-size: var(--text-l);
    line-height: 24px;
    font-weight: var(--strong);
    letter-spacing: -0.005em;
  }
  h3 {
    font-size: var(--text-m);
    font-weight: var(--strong);
  }
  ul,
  ol {
    list-style: none;
  }
  a {
    color: inherit;
    text-underline-offset: 3px;
    text-decoration-thickness: 1px;
  }
  :focus {
    outline: none;
  }
  :focus-visible {
    outline: 2px solid var(--focus);
    outline-offset: 2px;
    border-radius: var(--radius);
  }
  .icon {
    width: 20px;
    height: 20px;
    flex: none;
    fill: none;
    stroke: currentColor;
    stroke-width: 1.75;
    stroke-linecap: round;
    stroke-linejoin: round;
  }
  .icon.small {
    width: 16px;
    height: 16px;
  }
  button,
  input,
  select,
  textarea {
    font: inherit;
    color: inherit;
  }
  .button {
    display: inline-flex;
    align-items: center;
    justify-content: center;
    gap: var(--s2);
    min-height: var(--target);
    padding: 0 var(--s4);
    border: 1px solid var(--line);
    border-radius: var(--radius);
    background: var(--raised);
    color: var(--ink);
    font-size: var(--text-s);
    font-weight: var(--strong);
    text-decoration: none;
    white-space: nowrap;
    cursor: pointer;
    transition: background var(--quick);
  }
  .button:hover {
    background: linear-gradient(var(--hover), var(--hover)) var(--raised);
  }
  .button.solid {
    border-color: var(--solid);
    background: var(--solid);
    color: var(--on-solid);
  }
  .button.solid:hover {
    opacity: 0.88;
  }
  .button.danger {
    color: var(--bad);
  }
  .button.quiet {
    border-color: transparent;
    background: transparent;
  }
  .button.quiet:hover {
    background: var(--hover);
  }
  .button.icon-only {
    width: var(--target);
    padding: 0;
  }
  .button:disabled,
  .button[aria-disabled="true"] {
    opacity: 0.45;
    cursor: default;
  }
  .field {
    min-height: var(--target);
    padding: 0 var(--s3);
    border: 1px solid var(--line-strong);
    border-radius: var(--radius);
    background: var(--ground);
    font-size: var(--text-s);
  }
  .field::placeholder,
  ::placeholder {
    color: var(--ink-3);
    opacity: 1;
  }
  input::-webkit-search-cancel-button {
    display: none;
  }
  label.labelled {
    display: grid;
    gap: var(--s1);
    font-size: var(--text-xs);
    color: var(--ink-2);
  }
  .chip {
    display: inline-flex;
    align-items: center;
    gap: var(--s2);
    min-height: var(--target);
    padding: 0 var(--s3);
    border: 1px solid var(--line);
    border-radius: var(--radius);
    background: transparent;
    color: var(--ink-2);
    font-size: var(--text-s);
    white-space: nowrap;
    cursor: pointer;
    transition: background var(--quick);
  }
  .chip:hover {
    background: var(--hover);
  }
  .chip[aria-pressed="true"],
  .chip.on {
    border-color: var(--solid);
    color: var(--ink);
    font-weight: var(--strong);
  }
  mark {
    background: var(--hit-soft);
    color: inherit;
    border-radius: 3px;
    padding: 1px 2px;
    margin: 0 -2px;
  }
  .time {
    font-variant-numeric: tabular-nums;
  }
  .note {
    color: var(--ink-3);
    font-size: var(--text-s);
  }
  .problem {
    color: var(--bad);
    font-size: var(--text-s);
  }
  .skeleton {
    border-radius: var(--radius);
    background: var(--surface);
    animation: wait 1.4s ease-in-out infinite alternate;
  }
  @keyframes wait {
    to {
      background: var(--sunken);
    }
  }
  .only-read {
    position: absolute;
    width: 1px;
    height: 1px;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  @media (prefers-reduced-motion: reduce) {
    .skeleton {
      animation: none;
    }
    * {
      transition-duration: 0s !important;
    }
  }
`;
