/**
 * What grids of faces share: tiles that can be chosen with a checkbox (shift: up to it), and the bar of what to do with
 * those that are chosen. `Selection` keeps the choice.
 */

import { css } from "lit";

/** The ids that are chosen; renders its host again after each change. */
export class Selection {
  /** @param {import("lit").LitElement} host */
  constructor(host) {
    this.host = host;
    /** @type {Set<string>} */
    this.ids = new Set();
    this.last = "";
    host.addController(this);
    this.onKey = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape" && this.ids.size && !event.defaultPrevented) this.clear();
    };
  }

  hostConnected() {
    this.host.addEventListener("keydown", this.onKey);
  }

  hostDisconnected() {
    this.host.removeEventListener("keydown", this.onKey);
  }

  get size() {
    return this.ids.size;
  }

  /** @param {string} id */
  has(id) {
    return this.ids.has(id);
  }

  /**
   * @param {string} id
   * @param {MouseEvent} event of its checkbox
   * @param {string[]} order all ids as they are shown
   */
  toggle(id, event, order) {
    const on = !this.ids.has(id);
    const [from, to] = [order.indexOf(this.last), order.indexOf(id)];
    const range = event.shiftKey && from >= 0 ? order.slice(Math.min(from, to), Math.max(from, to) + 1) : [id];
    for (const one of range) {
      if (on) this.ids.add(one);
      else this.ids.delete(one);
    }
    this.last = id;
    this.host.requestUpdate();
  }

  /**
   * Forget those that are not shown any more.
   * @param {Iterable<string>} shown
   */
  keep(shown) {
    const all = new Set(shown);
    for (const id of this.ids) if (!all.has(id)) this.ids.delete(id);
  }

  clear() {
    this.ids.clear();
    this.host.requestUpdate();
  }
}

export const selecting = css`
  .tiles {
    display: grid;
    gap: var(--s5) var(--s4);
  }
  .tile {
    position: relative;
    min-width: 0;
  }
  .tile a {
    display: block;
    color: inherit;
    text-decoration: none;
  }
  .tile .title {
    margin-top: var(--s2);
    font-size: var(--text-s);
    font-weight: var(--strong);
    line-height: 20px;
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  .tile a:hover .title {
    text-decoration: underline;
    text-underline-offset: 3px;
  }
  .tile .sub {
    color: var(--ink-2);
    font-size: var(--text-xs);
    line-height: 16px;
  }
  .pick {
    position: absolute;
    z-index: 1;
    top: 0;
    left: 0;
    display: grid;
    place-items: center;
    width: var(--target);
    height: var(--target);
    cursor: pointer;
  }
  .pick input {
    appearance: none;
    display: grid;
    place-items: center;
    width: 22px;
    height: 22px;
    margin: 0;
    border: 1.5px solid var(--on-picture);
    border-radius: 6px;
    background: var(--scrim);
    cursor: pointer;
    transition: opacity var(--quick);
  }
  .pick input:checked {
    border-color: #fff;
    background: #fff;
  }
  .pick input:checked::after {
    content: "";
    width: 10px;
    height: 5px;
    margin-top: -3px;
    border: solid #111;
    border-width: 0 0 2px 2px;
    transform: rotate(-45deg);
  }
  .tile.on sf-face {
    outline: 3px solid var(--ink);
    outline-offset: 2px;
    border-radius: var(--radius);
  }
  @media (hover: hover) {
    .tiles:not(.choosing) .pick input:not(:focus-visible, :checked) {
      opacity: 0;
    }
    .tile:hover .pick input {
      opacity: 1 !important;
    }
  }
  .bar {
    position: sticky;
    z-index: 20;
    bottom: calc(var(--tabs) + env(safe-area-inset-bottom) + var(--s4));
    display: flex;
    flex-wrap: wrap;
    align-items: center;
    gap: var(--s2);
    width: fit-content;
    max-width: 100%;
    margin: var(--s6) auto 0;
    padding: var(--s2) var(--s2) var(--s2) var(--s4);
    border: 1px solid var(--line);
    border-radius: 12px;
    background: var(--raised);
    box-shadow: var(--shadow);
  }
  .bar .count {
    font-size: var(--text-s);
    font-weight: var(--strong);
    margin-right: var(--s2);
    white-space: nowrap;
  }
  .bar form {
    display: flex;
    flex-wrap: wrap;
    gap: var(--s2);
    min-width: 0;
  }
  .bar .field {
    width: 220px;
    min-width: 0;
    flex: 1 1 160px;
  }
  @media (max-width: 719px) {
    .bar .count {
      flex: 1;
    }
    .bar > .icon-only {
      order: 1;
    }
    .bar > .button:not(.icon-only),
    .bar form {
      order: 2;
    }
    .bar form {
      width: 100%;
    }
    .bar form .button,
    .bar > .button:not(.icon-only) {
      flex: 1 1 auto;
      padding: 0 var(--s3);
    }
  }
  .tabs {
    display: flex;
    gap: var(--s1);
    padding: 3px;
    border-radius: 10px;
    background: var(--surface);
  }
  .tabs a {
    display: inline-flex;
    align-items: center;
    min-height: 34px;
    padding: 0 var(--s3);
    border-radius: 7px;
    color: var(--ink-2);
    font-size: var(--text-s);
    font-weight: var(--strong);
    text-decoration: none;
  }
  .tabs a[aria-current] {
    background: var(--raised);
    color: var(--ink);
    box-shadow: 0 1px 2px light-dark(#0000001f, #0006);
  }
`;
