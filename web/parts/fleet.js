/**
 * sf-fleet: for operators: what is wrong, how much waits where, which nodes work, which models are searched.
 *
 * Properties: `route`.
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { store, Watch } from "../store.js";
import { ago, duration, known, number, t } from "../text.js";
import { stageName } from "./progress.js";
import "./switch.js";
import { toast, toastError } from "./toast.js";

/**
 * @typedef {import("../types.js").FleetState} FleetState
 * @typedef {FleetState["nodes"][number]} NodeView
 * @typedef {FleetState["queues"][number]} QueueView
 * @typedef {FleetState["failures"][number]} FailureKind
 */

const POLL_MS = 3_000;

export class SfFleet extends LitElement {
  static properties = { route: { attribute: false }, fleet: { state: true }, problem: { state: true }, busy: { state: true } };

  static styles = [
    controls,
    css`
      :host {
        width: 100%;
        max-width: calc(var(--width) + 2 * var(--gutter));
        margin: 0 auto;
        padding: var(--s6) var(--gutter) var(--s16);
      }
      .head {
        display: grid;
        gap: var(--s1);
        margin-bottom: var(--s8);
      }
      .sum {
        color: var(--ink-2);
      }
      section {
        margin-bottom: var(--s10);
      }
      h2 {
        margin-bottom: var(--s3);
      }
      .scroll {
        overflow-x: auto;
        margin: 0 calc(-1 * var(--gutter));
        padding: 0 var(--gutter);
      }
      table {
        width: 100%;
        border-collapse: collapse;
        font-size: var(--text-s);
        line-height: 20px;
      }
      th {
        padding: var(--s2) var(--s4) var(--s2) 0;
        color: var(--ink-3);
        font-size: var(--text-xs);
        font-weight: 400;
        text-align: left;
        white-space: nowrap;
      }
      tbody td,
      tbody th {
        padding: var(--s3) var(--s4) var(--s3) 0;
        border-top: 1px solid var(--line);
        vertical-align: top;
      }
      tbody th {
        color: var(--ink);
        font-size: var(--text-s);
        font-weight: var(--strong);
      }
      .n {
        text-align: right;
        font-variant-numeric: tabular-nums;
        white-space: nowrap;
      }
      tr > :last-child {
        padding-right: 0;
      }
      .zero {
        color: var(--ink-3);
      }
      .load {
        width: 28%;
        min-width: 96px;
      }
      .load i {
        display: block;
        height: 4px;
        margin-top: 8px;
        border-radius: 2px;
        background: linear-gradient(var(--ink-2), var(--ink-2)) left / var(--share) 100% no-repeat var(--line);
      }
      .state {
        display: inline-flex;
        align-items: center;
        gap: 6px;
        white-space: nowrap;
      }
      .ready {
        color: var(--good);
      }
      .failed {
        color: var(--bad);
      }
      .why {
        color: var(--ink-2);
        overflow-wrap: anywhere;
      }
      .fault {
        display: grid;
        grid-template-columns: minmax(0, 1fr) auto;
        align-items: start;
        gap: var(--s2) var(--s5);
        padding: var(--s4) 0;
        border-top: 1px solid var(--line);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .fault h3 {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--s2);
      }
      .fault h3 .note {
        font-weight: 400;
      }
      .fault h3 .icon {
        color: var(--bad);
      }
      .fault .sub {
        color: var(--ink-3);
        font-size: var(--text-xs);
      }
      .calm {
        display: flex;
        align-items: center;
        gap: var(--s2);
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      .calm .icon {
        color: var(--good);
      }
      @media (min-width: 1440px) {
        .pair {
          display: grid;
          grid-template-columns: repeat(2, minmax(0, 1fr));
          gap: var(--s16);
          align-items: start;
        }
      }
      .models {
        display: grid;
        gap: var(--s5);
        grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
        align-items: start;
      }
      .skeleton {
        height: 160px;
        margin-bottom: var(--s6);
      }
      .shell {
        display: grid;
        justify-items: start;
        gap: var(--s3);
        padding: var(--s8) var(--s6);
        border-radius: 16px;
        background: var(--surface);
        color: var(--ink-2);
      }
      @media (max-width: 719px) {
        .load,
        .low {
          display: none;
        }
        .n {
          padding-right: 0;
        }
        .fault {
          grid-template-columns: minmax(0, 1fr);
        }
        .fault .button {
          justify-self: start;
        }
        .nodes thead {
          display: none;
        }
        .nodes tr {
          display: grid;
          grid-template-columns: minmax(0, 1fr) auto;
          padding: var(--s3) 0;
          border-top: 1px solid var(--line);
        }
        .nodes td,
        .nodes th {
          padding: 0;
          border: 0;
        }
        .nodes .why {
          grid-column: 1 / -1;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {import("../app.js").Route | null} */
    this.route = null;
    /** @type {FleetState | null} */
    this.fleet = null;
    /** @type {any} */
    this.problem = null;
    /** The class of error that is tried again. */
    this.busy = "";
    this.timer = 0;
    this.onVisible = () => {
      if (document.visibilityState === "visible" && this.isConnected) void this.#load();
    };
  }

  connectedCallback() {
    super.connectedCallback();
    document.addEventListener("visibilitychange", this.onVisible);
    void this.#load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    document.removeEventListener("visibilitychange", this.onVisible);
    clearTimeout(this.timer);
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (changed.has("route")) document.title = t("fleet.document");
  }

  async #load() {
    clearTimeout(this.timer);
    try {
      this.fleet = await ask("/fleet");
      this.problem = null;
    } catch (error) {
      this.problem = error;
      if (/** @type {any} */ (error).status === 403) return;
    }
    clearTimeout(this.timer);
    if (this.isConnected && document.visibilityState === "visible") this.timer = setTimeout(() => void this.#load(), POLL_MS);
  }

  /** @param {string} errorClass */
  async #retry(errorClass) {
    this.busy = errorClass;
    try {
      /** @type {{videos: number, refused: number, error: string | null, more: boolean}} */
      let answer;
      let videos = 0;
      do {
        answer = await ask("/fleet/failures/retry", { body: { error_class: errorClass } });
        videos += answer.videos;
      } while (answer.more && answer.videos);
      toast(t("fleet.retried", { n: videos }), { kind: "good" });
      if (answer.refused) toast(t("fleet.refused", { n: answer.refused, reason: answer.error ?? "" }), { kind: "bad" });
    } catch (error) {
      toastError(error);
    }
    this.busy = "";
    void this.#load();
  }

  render() {
    if (store.me?.operator === false || this.problem?.status === 403) {
      return html`<div class="shell">
        <h1>${t("fleet.operators.title")}</h1>
        <p>${t("fleet.operators.text")}</p>
        <a class="button" href="/library">${t("app.library")}</a>
      </div>`;
    }
    const fleet = this.fleet;
    if (!fleet) {
      return this.problem
        ? html`<div class="shell" role="alert">
            <p>${this.problem.message}</p>
            <button class="button" @click=${() => void this.#load()}>${t("action.retry")}</button>
          </div>`
        : html`<div aria-busy="true" aria-label=${t("fleet.loading")}>${[1, 2, 3].map(() => html`<div class="skeleton"></div>`)}</div>`;
    }
    return html`
      <div class="head">
        <h1>${t("app.fleet")}</h1>
        <p class="sum">${this.#sum(fleet)}</p>
      </div>
      ${fleet.failures.length ? this.#failures(fleet) : ""} 
      <div class="pair">${this.#queues(fleet)} ${this.#nodes(fleet)}</div>
      <section aria-labelledby="models">
        <h2 id="models">${t("fleet.models")}</h2>
        <div class="models">
          ${repeat(
            fleet.models,
            ({ kind }) => kind,
            (models) =>
              html`<sf-switch
                .models=${models}
                .names=${[...new Set(fleet.nodes.filter(({ family }) => family === models.kind).flatMap((node) => node.models))]}
                @changed=${() => void this.#load()}
              ></sf-switch>`,
          )}
        </div>
      </section>
    `;
  }

  /**
   * The state of the fleet in a sentence.
   * @param {FleetState} fleet
   */
  #sum(fleet) {
    const ready = fleet.nodes.filter(({ state }) => state === "ready").length;
    const waiting = fleet.queues.reduce((sum, queue) => sum + queue.waiting, 0);
    const running = fleet.queues.reduce((sum, queue) => sum + queue.running, 0);
    const nodes =
      ready === fleet.nodes.length
        ? t("fleet.sum.nodes", { n: ready })
        : t("fleet.sum.some", { ready, n: fleet.nodes.length });
    return [nodes, t("fleet.sum.running", { n: running }), t("fleet.sum.waiting", { n: waiting })].join(" · ");
  }

  /** @param {FleetState} fleet */
  #failures(fleet) {
    return html`<section aria-labelledby="failures">
      <h2 id="failures">${t("fleet.failures")}</h2>
      ${repeat(
        fleet.failures,
        ({ error_class }) => error_class,
        (fault) => this.#fault(fault),
      )}
    </section>`;
  }

  /** @param {FailureKind} fault */
  #fault(fault) {
    const key = `fault.${fault.error_class}`;
    const where = fault.video_id && fault.user_id === store.me?.user_id
      ? html`<a href=${`/v/${fault.video_id}`}>${fault.video_id}</a>`
      : (fault.video_id ?? "");
    return html`<div class="fault" data-error=${fault.error_class}>
      <div>
        <h3>${icon("warning", true)} ${known(key) ? t(key) : fault.error_class}
          <span class="note">${t("fleet.fault.count", { jobs: t("fleet.jobs", { n: fault.count }), videos: t("people.videos", { n: fault.videos }) })}</span>
        </h3>
        <p class="why">${fault.error ?? ""}</p>
        <p class="sub">
          ${fault.failed_at ? t("fleet.fault.last", { ago: ago(fault.failed_at), stage: stageName(fault.stage), user: fault.user_id }) : ""} ${where}
        </p>
      </div>
      ${fault.videos
        ? html`<button class="button" ?disabled=${this.busy !== ""} @click=${() => void this.#retry(fault.error_class)}>
            ${icon("retry", true)} ${t("fleet.retry", { n: fault.videos })}
          </button>`
        : ""}
    </div>`;
  }

  /** @param {FleetState} fleet */
  #queues({ queues }) {
    const most = Math.max(1, ...queues.map(({ waiting }) => waiting));
    const count = (/** @type {number} */ n, bad = false) =>
      html`<td class="n ${n ? (bad ? "failed" : "") : "zero"}">${number(n)}</td>`;
    return html`<section aria-labelledby="queues">
      <h2 id="queues">${t("fleet.queues")}</h2>
      <table>
        <thead>
          <tr>
            <th scope="col">${t("fleet.queue")}</th>
            <td class="load" aria-hidden="true"></td>
            <th scope="col" class="n">${t("fleet.waiting")}</th>
            <th scope="col" class="n">${t("fleet.oldest")}</th>
            <th scope="col" class="n">${t("fleet.running")}</th>
            <th scope="col" class="n low">${t("fleet.deferred")}</th>
            <th scope="col" class="n low">${t("fleet.rate")}</th>
            <th scope="col" class="n low">${t("fleet.failed")}</th>
          </tr>
        </thead>
        <tbody>
          ${repeat(
            queues,
            ({ queue }) => queue,
            (queue) =>
              html`<tr data-queue=${queue.queue}>
                <th scope="row">${queue.queue}</th>
                <td class="load" aria-hidden="true"><i .style=${`--share: ${((queue.waiting / most) * 100).toFixed(1)}%`}></i></td>
                ${count(queue.waiting)}
                <td class="n ${queue.oldest_s === null ? "zero" : ""}">${queue.oldest_s === null ? "–" : duration(queue.oldest_s)}</td>
                ${count(queue.running)}
                <td class="n low ${queue.deferred ? "" : "zero"}">${number(queue.deferred)}</td>
                <td class="n low ${queue.done_last_minute ? "" : "zero"}">${number(queue.done_last_minute)}</td>
                <td class="n low ${queue.failed ? "failed" : "zero"}">${number(queue.failed)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
    </section>`;
  }

  /** @param {FleetState} fleet */
  #nodes({ nodes }) {
    const rank = (/** @type {NodeView} */ { state }) => ["failed", "loading", "ready"].indexOf(state);
    const sorted = [...nodes].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
    return html`<section aria-labelledby="nodes">
      <h2 id="nodes">${t("fleet.nodes")}</h2>
      ${nodes.length
        ? html`<table class="nodes">
            <thead>
              <tr>
                <th scope="col">${t("fleet.node")}</th>
                <th scope="col">${t("fleet.state")}</th>
                <th scope="col">${t("fleet.holds")}</th>
              </tr>
            </thead>
            <tbody>
              ${repeat(
                sorted,
                ({ name }) => name,
                (node) =>
                  html`<tr data-node=${node.name}>
                    <th scope="row">${node.name}</th>
                    <td>
                      <span class="state ${node.state}">
                        ${icon(node.state === "ready" ? "check" : node.state === "failed" ? "warning" : "clock", true)}
                        ${known(`node.${node.state}`) ? t(/** @type {any} */ (`node.${node.state}`)) : node.state}
                      </span>
                    </td>
                    <td class="why">${node.error || node.models.join(", ") || nothing}</td>
                  </tr>`,
              )}
            </tbody>
          </table>`
        : html`<p class="note">${t("fleet.no_nodes")}</p>`}
    </section>`;
  }
}

customElements.define("sf-fleet", SfFleet);
