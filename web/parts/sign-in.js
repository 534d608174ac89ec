/**
 * sf-sign-in: asks who asks, when the API has said that nothing tells it (401): by an API key, or at an OpenID provider.
 *
 * Properties: none.
 * Events: none; the store tells when the user is signed in.
 */

import { LitElement, css, html, nothing } from "lit";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { store } from "../store.js";
import { t } from "../text.js";

/** Where the API leads a browser whose sign-in at the provider failed. */
const FAILED = "#sign-in-failed";

export class SfSignIn extends LitElement {
  static properties = { ways: { state: true }, problem: { state: true }, busy: { state: true } };

  static styles = [
    controls,
    css`
      .ways {
        display: grid;
        gap: var(--s6);
        width: min(440px, 100%);
        margin: auto;
        padding: var(--s16) var(--gutter);
      }
      form {
        display: grid;
        gap: var(--s4);
      }
      form > p,
      .ways > p {
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
    /** How the API lets a browser sign in; null: it has not said yet. @type {{key: boolean, oidc: string | null} | null} */
    this.ways = null;
    this.problem = "";
    this.busy = false;
  }

  connectedCallback() {
    super.connectedCallback();
    void this.#look();
  }

  async #look() {
    try {
      this.ways = await ask("/session");
    } catch {
      this.ways = { key: true, oidc: null };
    }
    await this.updateComplete;
    /** @type {HTMLElement | null} */ (this.renderRoot.querySelector(".oidc, #key"))?.focus();
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
    if (!this.ways) return "";
    const { key, oidc } = this.ways;
    return html`<div class="ways">
      <h1>${t("sign_in.title")}</h1>
      ${oidc
        ? html`${location.hash === FAILED ? html`<p class="problem" role="alert">${t("sign_in.failed")}</p>` : ""}
          <a class="button solid oidc" href=${`${oidc}?next=${encodeURIComponent(location.pathname + location.search)}`}>
            ${t("sign_in.oidc")}
          </a>`
        : ""}
      ${key ? this.#form(oidc !== null) : oidc ? "" : html`<p>${t("sign_in.proxy")}</p>`}
    </div>`;
  }

  /** @param {boolean} other whether there is another way, which comes first */
  #form(other) {
    return html`<form @submit=${this.#submit}>
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
      <button class="button ${other ? "" : "solid"}" ?disabled=${this.busy}>${t("sign_in.go")}</button>
    </form>`;
  }
}

customElements.define("sf-sign-in", SfSignIn);
