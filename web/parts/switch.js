/**
 * sf-switch: the model by which a kind is searched, and the switch to another one, step by step.
 *
 * Properties: `models` (ModelsState), `names` (models that nodes of the kind hold, to choose from).
 * Events: `changed`, after an act.
 */

import { LitElement, css, html } from "lit";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { ago, duration, number, t } from "../text.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("../types.js").ModelsState} ModelsState */

export class SfSwitch extends LitElement {
  static properties = {
    models: { attribute: false },
    names: { attribute: false },
    busy: { state: true },
    plan: { state: true },
    to: { state: true },
    problem: { state: true },
  };

  static styles = [
    controls,
    css`
      article {
        display: grid;
        gap: var(--s3);
        padding: var(--s5);
        border: 1px solid var(--line);
        border-radius: 12px;
      }
      .kind {
        color: var(--ink-2);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .model {
        font-size: var(--text-l);
        line-height: 24px;
        overflow-wrap: anywhere;
      }
      .text {
        color: var(--ink-2);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .bar {
        height: 6px;
        border-radius: 3px;
        background: linear-gradient(var(--ink-2), var(--ink-2)) left / var(--share) 100% no-repeat var(--line);
        transition: background-size var(--quick);
      }
      .steps {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s1) var(--s4);
        font-size: var(--text-xs);
        color: var(--ink-3);
      }
      .steps li {
        display: inline-flex;
        align-items: center;
        gap: var(--s1);
      }
      .steps [aria-current] {
        color: var(--ink);
        font-weight: var(--strong);
      }
      .steps .past .icon {
        color: var(--good);
      }
      form,
      .acts {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
      }
      form .field {
        flex: 1 1 200px;
        min-width: 0;
      }
    `,
  ];

  constructor() {
    super();
    /** @type {ModelsState | null} */
    this.models = null;
    /** @type {string[]} */
    this.names = [];
    this.busy = false;
    /** What a dry run said. @type {ModelsState | null} */
    this.plan = null;
    this.to = "";
    this.problem = "";
  }

  /**
   * @param {string} act
   * @param {unknown} [body]
   */
  async #act(act, body) {
    if (!this.models) return null;
    this.busy = true;
    this.problem = "";
    try {
      const state = /** @type {ModelsState} */ (await ask(`/models/${this.models.kind}/${act}`, { method: "POST", body }));
      if (!(/** @type {any} */ (body)?.dry_run)) {
        this.models = state;
        this.dispatchEvent(new Event("changed"));
      }
      return state;
    } catch (error) {
      if (act === "switch") this.problem = error instanceof Error ? error.message : String(error);
      else toastError(error);
      return null;
    } finally {
      this.busy = false;
    }
  }

  /** @param {SubmitEvent} event */
  async #estimate(event) {
    event.preventDefault();
    this.plan = await this.#act("switch", { to: this.to.trim(), dry_run: true });
  }

  async #begin() {
    if (await this.#act("switch", { to: this.to.trim(), dry_run: false })) {
      this.plan = null;
      this.to = "";
    }
  }

  /** @param {string} act */
  async #step(act) {
    const done = await this.#act(act, act === "discard" ? { now: false } : undefined);
    if (done) toast(t(/** @type {any} */ (`switch.${act}.done`)), { kind: "good" });
  }

  render() {
    const models = this.models;
    if (!models) return "";
    return html`<article aria-label=${t(`switch.kind.${models.kind}`)}>
      <p class="kind">${t(`switch.kind.${models.kind}`)}</p>
      <h3 class="model">${models.active ?? t("switch.none")}</h3>
      ${models.active
        ? html`<p class="text">${t("switch.scenes", { n: models.scenes })}</p>
            ${models.switch ? this.#open(models.switch) : this.#start(models)}`
        : html`<p class="text">${t("switch.none_text")}</p>`}
    </article>`;
  }

  /** @param {ModelsState} models */
  #start(models) {
    return html`
      <form @submit=${this.#estimate}>
        <input
          class="field"
          list="names"
          required
          pattern="[a-z0-9][a-z0-9._\\-]*"
          maxlength="64"
          autocomplete="off"
          aria-label=${t("switch.to")}
          placeholder=${t("switch.to")}
          .value=${this.to}
          @input=${(/** @type {any} */ event) => {
            this.to = event.target.value;
            this.plan = null;
            this.problem = "";
          }}
        />
        <datalist id="names">
          ${this.names.filter((name) => name !== models.active).map((name) => html`<option value=${name}></option>`)}
        </datalist>
        <button class="button" ?disabled=${this.busy || !this.to.trim()}>${t("switch.estimate")}</button>
      </form>
      ${this.problem ? html`<p class="problem" role="alert">${this.problem}</p>` : ""}
      ${this.plan
        ? html`<p class="text" role="status">${t("switch.plan", { n: this.plan.scenes, to: this.to.trim() })}</p>
            <div class="acts"><button class="button solid" ?disabled=${this.busy} @click=${() => void this.#begin()}>${t("switch.begin")}</button></div>`
        : ""}
    `;
  }

  /** @param {import("../types.js").SwitchView} change */
  #open(change) {
    const share = change.total ? Math.min(1, change.done / change.total) : 1;
    const at = ["building", "ready", "activated", "discarding"].indexOf(change.state);
    const steps = /** @type {const} */ (["switch.step.build", "switch.step.compare", "switch.step.use", "switch.step.discard"]);
    const button = (/** @type {string} */ act, look = "") =>
      html`<button class="button ${look}" ?disabled=${this.busy} @click=${() => void this.#step(act)}>${t(/** @type {any} */ (`switch.${act}`))}</button>`;
    return html`
      <p class="text">${t("switch.way", { from: change.from_model, to: change.to_model })}</p>
      <ol class="steps">
        ${steps.map(
          (step, index) =>
            html`<li class=${index < at ? "past" : ""} aria-current=${index === at ? "step" : "false"}>
              ${index < at ? icon("check", true) : ""} ${t(step)}
            </li>`,
        )}
      </ol>
      <div
        class="bar"
        role="progressbar"
        aria-label=${t("switch.bar", { to: change.to_model })}
        aria-valuenow=${Math.floor(share * 100)}
        .style=${`--share: ${(share * 100).toFixed(1)}%`}
      ></div>
      <p class="text time">
        ${[
          t("switch.done", { done: change.done, total: change.total }),
          change.scenes_per_s ? t("switch.rate", { rate: number(Math.round(change.scenes_per_s * 10) / 10) }) : "",
          change.eta_s ? t("switch.eta", { time: duration(change.eta_s) }) : "",
          change.activated_at && change.state === "activated" ? t("switch.since", { ago: ago(change.activated_at) }) : "",
        ]
          .filter(Boolean)
          .join(" · ")}
      </p>
      ${change.failed
        ? html`<p class="problem">${t("switch.failed", { n: change.failed })} ${change.error ?? ""}</p>`
        : ""}
      <div class="acts">
        ${change.state === "ready" ? button("activate", "solid") : ""} ${change.failed ? button("retry") : ""}
        ${change.state === "activated" ? button("rollback") : ""} ${change.state === "discarding" ? "" : button("discard", "danger")}
      </div>
    `;
  }
}

customElements.define("sf-switch", SfSwitch);
