/**
 * sf-dialog: a modal dialog with a title; its content is slotted.
 *
 * Properties: `label` (the title). Methods: `show()`, `close()`.
 * Events: `closed`.
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { t } from "../text.js";

export class SfDialog extends LitElement {
  static properties = { label: {} };

  static styles = [
    controls,
    css`
      dialog {
        width: min(520px, calc(100vw - 32px));
        max-height: calc(100dvh - 64px);
        margin: auto;
        padding: 0;
        border: 1px solid var(--line);
        border-radius: 12px;
        background: var(--raised);
        color: var(--ink);
        box-shadow: var(--shadow);
      }
      dialog::backdrop {
        background: #00000080;
      }
      header {
        display: flex;
        align-items: center;
        justify-content: space-between;
        gap: var(--s3);
        padding: var(--s3) var(--s3) 0 var(--s6);
      }
      .content {
        padding: var(--s2) var(--s6) var(--s6);
      }
    `,
  ];

  constructor() {
    super();
    this.label = "";
  }

  get #dialog() {
    return /** @type {HTMLDialogElement} */ (this.renderRoot.querySelector("dialog"));
  }

  show() {
    this.#dialog.showModal();
    const first = this.querySelector("[autofocus]") ?? this.querySelector("input, select, button");
    /** @type {HTMLElement | null} */ (first)?.focus();
  }

  close() {
    this.#dialog.close();
  }

  render() {
    return html`<dialog
      aria-label=${this.label}
      @close=${() => this.dispatchEvent(new Event("closed"))}
      @click=${(/** @type {Event} */ event) => event.composedPath()[0] === this.#dialog && this.close()}
    >
      <header>
        <h2>${this.label}</h2>
        <button class="button quiet icon-only" aria-label=${t("action.close")} @click=${() => this.close()}>${icon("close")}</button>
      </header>
      <div class="content"><slot></slot></div>
    </dialog>`;
  }
}

customElements.define("sf-dialog", SfDialog);
