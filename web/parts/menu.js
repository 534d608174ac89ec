/**
 * sf-menu: a chip that opens a small panel below it; a sheet at the lower edge of a phone.
 *
 * Properties: `label` (text of the chip), `icon` (name of an icon), `on` (something in it is chosen), `open`.
 * Slot: the panel's content.
 * Events: `sf-open`, `sf-close`.
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { t } from "../text.js";

export class SfMenu extends LitElement {
  static properties = {
    label: {},
    icon: {},
    on: { type: Boolean },
    open: { type: Boolean, reflect: true },
  };

  static styles = [
    controls,
    css`
      :host {
        position: relative;
        flex: none;
      }
      .chip .icon.small {
        margin: 0 -2px;
      }
      .panel {
        position: absolute;
        z-index: 25;
        top: calc(100% + var(--s1));
        left: 0;
        display: grid;
        gap: var(--s2);
        width: max-content;
        min-width: 240px;
        max-width: 340px;
        max-height: min(420px, 70vh);
        overflow: auto;
        padding: var(--s3);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--raised);
        box-shadow: var(--shadow);
        color: var(--ink);
      }
      :host([at-end]) .panel {
        left: auto;
        right: 0;
      }
      .close {
        display: none;
      }
      @media (max-width: 719px) {
        .panel,
        :host([at-end]) .panel {
          position: fixed;
          z-index: 70;
          inset: auto 0 0 0;
          width: auto;
          max-width: none;
          max-height: 76vh;
          padding: var(--s4) var(--s4) calc(var(--s4) + env(safe-area-inset-bottom));
          border-width: 1px 0 0;
          border-radius: var(--radius) var(--radius) 0 0;
          box-shadow: 0 0 0 100vmax #0009;
        }
        .close {
          display: inline-flex;
        }
      }
    `,
  ];

  constructor() {
    super();
    this.label = "";
    /** @type {import("../icons.js").IconName | ""} */
    this.icon = "";
    this.on = false;
    this.open = false;
    this.outside = (/** @type {Event} */ event) => {
      if (!event.composedPath().includes(this)) this.close(false);
    };
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    removeEventListener("pointerdown", this.outside, true);
  }

  toggle() {
    if (this.open) this.close();
    else this.show();
  }

  show() {
    this.open = true;
    this.toggleAttribute("at-end", this.getBoundingClientRect().left + 360 > innerWidth);
    addEventListener("pointerdown", this.outside, true);
    this.dispatchEvent(new Event("sf-open"));
  }

  /** @param {boolean} [focus] whether the chip gets the focus */
  close(focus = true) {
    if (!this.open) return;
    this.open = false;
    removeEventListener("pointerdown", this.outside, true);
    if (focus) this.renderRoot.querySelector("button")?.focus();
    this.dispatchEvent(new Event("sf-close"));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Escape" || !this.open) return;
    event.stopPropagation();
    this.close();
  }

  render() {
    return html`<div @keydown=${this.#key}>
      <button class=${this.on ? "chip on" : "chip"} aria-expanded=${this.open} aria-haspopup="dialog" @click=${this.toggle}>
        ${this.icon ? icon(this.icon, true) : ""} ${this.label}
      </button>
      <div class="panel" role="dialog" aria-label=${this.label} ?hidden=${!this.open}>
        <slot></slot>
        <button class="button close" @click=${() => this.close()}>${t("action.close")}</button>
      </div>
    </div>`;
  }
}

customElements.define("sf-menu", SfMenu);
