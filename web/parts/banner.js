/**
 * sf-banner: one line that says which part of the system does not answer; it goes by itself.
 *
 * Properties: none; it reads the store.
 * Events: none.
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { store, Watch } from "../store.js";
import { t } from "../text.js";
import { toast } from "./toast.js";

export class SfBanner extends LitElement {
  static styles = [
    controls,
    css`
      .line {
        display: flex;
        align-items: center;
        justify-content: center;
        gap: var(--s3);
        min-height: var(--target);
        padding: var(--s2) var(--gutter);
        background: var(--bad-soft);
        color: var(--bad);
        font-size: var(--text-s);
        line-height: 20px;
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {typeof store.away} */
    this.shown = null;
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (this.shown && !store.away) toast(t("away.back"), { kind: "good", seconds: 3 });
    this.shown = store.away;
  }

  render() {
    return html`<div role="status" aria-live="polite">
      ${this.shown ? html`<p class="line">${icon("warning")} ${t(`away.${this.shown}`)}</p>` : ""}
    </div>`;
  }
}

customElements.define("sf-banner", SfBanner);
