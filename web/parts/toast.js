/**
 * sf-toast: short messages at the lower edge, each with at most one act such as "Undo".
 *
 * Properties: none. Other elements call `toast(text, options)`.
 * Events: none.
 */

import { LitElement, css, html } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { t } from "../text.js";

/**
 * @typedef {object} ToastOptions
 * @property {"plain" | "good" | "bad"} [kind]
 * @property {string} [action] the label of the act
 * @property {() => void} [onAction]
 * @property {number} [seconds] how long it stays; 0: until it is closed
 */

/** @typedef {{id: number, text: string, options: ToastOptions}} Toast */

const bus = new EventTarget();
let last = 0;

/**
 * Show a message, and return a function that takes it away.
 * @param {string} text
 * @param {ToastOptions} [options]
 * @returns {() => void}
 */
export function toast(text, options = {}) {
  const id = ++last;
  bus.dispatchEvent(new CustomEvent("add", { detail: { id, text, options } }));
  return () => bus.dispatchEvent(new CustomEvent("remove", { detail: { id } }));
}

/**
 * Show why a request failed.
 * @param {unknown} error
 */
export function toastError(error) {
  const text = error instanceof Error ? error.message : String(error);
  toast(text, { kind: "bad", seconds: 8 });
}

export class SfToast extends LitElement {
  static properties = { toasts: { state: true } };

  static styles = [
    controls,
    css`
      :host {
        position: fixed;
        z-index: 60;
        inset: auto 0 calc(var(--tabs) + env(safe-area-inset-bottom) + var(--s4)) 0;
        display: grid;
        justify-items: center;
        gap: var(--s2);
        padding: 0 var(--gutter);
        pointer-events: none;
      }
      .toast {
        display: flex;
        align-items: center;
        gap: var(--s2);
        max-width: 560px;
        padding: var(--s1) var(--s1) var(--s1) var(--s4);
        border-radius: var(--radius);
        background: var(--solid);
        color: var(--on-solid);
        box-shadow: var(--shadow);
        font-size: var(--text-s);
        line-height: 20px;
        pointer-events: auto;
        animation: come var(--quick) ease-out;
      }
      @keyframes come {
        from {
          opacity: 0;
          transform: translateY(8px);
        }
      }
      p {
        padding: var(--s2) 0;
        overflow-wrap: anywhere;
      }
      .button {
        color: inherit;
      }
      .button:hover {
        background: color-mix(in srgb, currentColor 16%, transparent);
      }
      .toast :focus-visible {
        outline-color: currentColor;
        outline-offset: -3px;
      }
      .act {
        text-decoration: underline;
        text-underline-offset: 3px;
        padding: 0 var(--s2);
      }
    `,
  ];

  constructor() {
    super();
    /** @type {Toast[]} */
    this.toasts = [];
    this.onAdd = (/** @type {Event} */ event) => this.#add(/** @type {CustomEvent<Toast>} */ (event).detail);
    this.onRemove = (/** @type {Event} */ event) => this.#remove(/** @type {CustomEvent} */ (event).detail.id);
  }

  connectedCallback() {
    super.connectedCallback();
    bus.addEventListener("add", this.onAdd);
    bus.addEventListener("remove", this.onRemove);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    bus.removeEventListener("add", this.onAdd);
    bus.removeEventListener("remove", this.onRemove);
  }

  /** @param {Toast} toast */
  #add(toast) {
    this.toasts = [...this.toasts.slice(-2), toast];
    const seconds = toast.options.seconds ?? (toast.options.action ? 10 : 5);
    if (seconds) setTimeout(() => this.#remove(toast.id), seconds * 1000);
  }

  /** @param {number} id */
  #remove(id) {
    this.toasts = this.toasts.filter((toast) => toast.id !== id);
  }

  render() {
    return html`<div role="status" aria-live="polite" aria-label=${t("toast.region")}>
      ${repeat(
        this.toasts,
        (toast) => toast.id,
        ({ id, text, options }) => html`
          <div class="toast">
            ${options.kind === "bad" ? icon("warning") : options.kind === "good" ? icon("check") : ""}
            <p>${text}</p>
            ${options.action
              ? html`<button
                  class="button quiet act"
                  @click=${() => {
                    this.#remove(id);
                    options.onAction?.();
                  }}
                >
                  ${options.action}
                </button>`
              : ""}
            <button class="button quiet icon-only" aria-label=${t("toast.close")} @click=${() => this.#remove(id)}>
              ${icon("close", true)}
            </button>
          </div>
        `,
      )}
    </div>`;
  }
}

customElements.define("sf-toast", SfToast);
