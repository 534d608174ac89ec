/**
 * sf-acts: a button with a short list of acts.
 *
 * Properties: `label` (for screen readers), `items` ({label, icon, act, danger}[]).
 * Events: none; a chosen item's `act` is called.
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";

/** @typedef {{label: string, icon: import("../icons.js").IconName, act: () => void, danger?: boolean}} Item */

export class SfActs extends LitElement {
  static properties = { label: {}, items: { attribute: false }, open: { state: true } };

  static styles = [
    controls,
    css`
      [aria-haspopup] .icon {
        stroke-width: 3;
      }
      .menu {
        position: fixed;
        margin: 0;
        inset: auto;
        min-width: 200px;
        max-width: calc(100vw - 16px);
        padding: var(--s1);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--raised);
        color: var(--ink);
        box-shadow: var(--shadow);
      }
      .menu button {
        display: flex;
        align-items: center;
        gap: var(--s3);
        width: 100%;
        min-height: var(--target);
        padding: 0 var(--s3);
        border: 0;
        border-radius: 6px;
        background: none;
        font-size: var(--text-s);
        text-align: left;
        cursor: pointer;
      }
      .menu button:hover,
      .menu button:focus {
        background: var(--hover);
      }
      .menu button:focus-visible {
        outline-offset: -2px;
      }
      .menu .danger {
        color: var(--bad);
      }
    `,
  ];

  constructor() {
    super();
    this.label = "";
    /** @type {Item[]} */
    this.items = [];
    this.open = false;
  }

  get #menu() {
    return /** @type {HTMLElement} */ (this.renderRoot.querySelector(".menu"));
  }

  /** @param {Event & {newState?: string}} event */
  #toggled(event) {
    this.open = event.newState === "open";
    if (!this.open) return;
    const menu = this.#menu;
    const at = this.getBoundingClientRect();
    const below = at.bottom + menu.offsetHeight + 8 < innerHeight;
    menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - menu.offsetHeight - 4)}px`;
    menu.style.left = `${Math.max(8, Math.min(at.right - menu.offsetWidth, innerWidth - menu.offsetWidth - 8))}px`;
    menu.querySelector("button")?.focus();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const items = [...this.#menu.querySelectorAll("button")];
    const at = items.indexOf(/** @type {HTMLButtonElement} */ (/** @type {ShadowRoot} */ (this.renderRoot).activeElement));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    items[(to + items.length) % items.length]?.focus();
  }

  /** @param {Item} item */
  #choose(item) {
    this.#menu.hidePopover();
    this.renderRoot.querySelector("button")?.focus();
    item.act();
  }

  render() {
    return html`
      <button
        class="button quiet icon-only"
        aria-label=${this.label}
        aria-haspopup="menu"
        aria-expanded=${this.open ? "true" : "false"}
        @click=${() => this.#menu.togglePopover()}
      >
        ${icon("more")}
      </button>
      <div class="menu" popover role="menu" aria-label=${this.label} @toggle=${this.#toggled} @keydown=${this.#key}>
        ${this.items.map(
          (item) =>
            html`<button role="menuitem" tabindex="-1" class=${item.danger ? "danger" : ""} @click=${() => this.#choose(item)}>
              ${icon(item.icon, true)} ${item.label}
            </button>`,
        )}
      </div>
    `;
  }
}

customElements.define("sf-acts", SfActs);
