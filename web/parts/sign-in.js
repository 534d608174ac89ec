/**
 * sf-sign-in: asks for an API key when the API has said that nothing tells it who asks (401).
 *
 * Properties: none.
 * Events: none; the store tells when the user is signed in.
 */

import { LitElement, css, html, nothing } from "lit";
import { controls } from "../controls.js";
import { store } from "../store.js";
import { t } from "../text.js";

export class SfSignIn extends LitElement {
  static properties = { problem: { state: true }, busy: { state: true } };

  static styles = [
    controls,
    css`
      form {
        display: grid;
        gap: var(--s4);
        width: min(440px, 100%);
        margin: auto;
        padding: var(--s16) var(--gutter);
      }
      form > p {
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      .field {
        width: 100%;
      }
      .field[aria-invalid="true"] {
        border-color: var(--bad);
      }
      .button {
        justify-self: start;
      }
    `,
  ];

  constructor() {
    super();
    this.problem = "";
    this.busy = false;
  }

  firstUpdated() {
    this.#field.focus();
  }

  get #field() {
    return /** @type {HTMLInputElement} */ (this.renderRoot.querySelector("#key"));
  }

  /** @param {SubmitEvent} event */
  async #submit(event) {
    event.preventDefault();
    const key = this.#field.value.trim();
    if (!key || this.busy) return;
    this.busy = true;
    this.problem = "";
    try {
      await store.signIn(key);
    } catch (error) {
      this.problem = /** @type {Error} */ (error).message;
    }
    this.busy = false;
    await this.updateComplete;
    if (this.problem) this.#field.select();
  }

  render() {
    return html`<form @submit=${this.#submit}>
      <h1>${t("sign_in.title")}</h1>
      <p>${t("sign_in.text")}</p>
      <label class="labelled" for="key">${t("sign_in.key")}
        <input
          id="key"
          class="field"
          type="password"
          name="key"
          required
          autocomplete="current-password"
          autocapitalize="off"
          spellcheck="false"
          aria-invalid=${this.problem ? "true" : nothing}
          aria-describedby=${this.problem ? "problem" : nothing}
        />
      </label>
      <p class="problem" id="problem" role="alert" ?hidden=${!this.problem}>${this.problem}</p>
      <button class="button solid" ?disabled=${this.busy}>${t("sign_in.go")}</button>
    </form>`;
  }
}

customElements.define("sf-sign-in", SfSignIn);
