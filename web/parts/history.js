/**
 * sf-history: what was changed about people, the latest first; most changes can be undone.
 *
 * Properties: `person` (id; empty: all people).
 * Events: none.
 */

import { LitElement, css, html } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { acts, undo } from "../people.js";
import { store } from "../store.js";
import { ago, date, t } from "../text.js";

/** @typedef {import("../types.js").EventView} EventView */

const PAGE = 100;
const UNDOABLE = new Set(["rename", "confirm", "reject", "merge", "split"]);
/** @type {Record<string, import("../icons.js").IconName>} */
const ICONS = {
  create: "add",
  rename: "edit",
  confirm: "user_check",
  reject: "close",
  merge: "merge",
  split: "split",
  undo: "undo",
  erase: "trash",
};

export class SfHistory extends LitElement {
  static properties = { person: {}, events: { state: true }, more: { state: true }, problem: { state: true } };

  static styles = [
    controls,
    css`
      li {
        display: grid;
        grid-template-columns: 20px minmax(0, 1fr) auto;
        align-items: center;
        gap: var(--s4);
        min-height: 56px;
        padding: var(--s2) 0;
        border-top: 1px solid var(--line);
      }
      li > .icon {
        color: var(--ink-3);
      }
      .said {
        font-size: var(--text-s);
        line-height: 20px;
        overflow-wrap: anywhere;
      }
      .undone .said {
        color: var(--ink-3);
        text-decoration: line-through;
      }
      .when {
        color: var(--ink-3);
        font-size: var(--text-xs);
        line-height: 16px;
      }
      .note {
        padding: var(--s4) 0;
      }
      .skeleton {
        height: 40px;
        margin: var(--s2) 0;
      }
    `,
  ];

  constructor() {
    super();
    this.person = "";
    /** @type {EventView[] | null} */
    this.events = null;
    this.more = false;
    /** @type {Error | null} */
    this.problem = null;
    this.onChange = () => void this.#load(false);
  }

  connectedCallback() {
    super.connectedCallback();
    acts.addEventListener("change", this.onChange);
    store.addEventListener("people", this.onChange);
    void this.#load(false);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    acts.removeEventListener("change", this.onChange);
    store.removeEventListener("people", this.onChange);
  }

  /** @param {boolean} more */
  async #load(more) {
    const before = more ? this.events?.at(-1)?.event_id : null;
    try {
      /** @type {{events: EventView[]}} */
      const page = await ask("/people/events", { query: { before, limit: PAGE } });
      this.events = more ? [...(this.events ?? []), ...page.events] : page.events;
      this.more = page.events.length === PAGE;
      this.problem = null;
    } catch (error) {
      this.problem = /** @type {Error} */ (error);
    }
  }

  render() {
    if (this.problem && !this.events) {
      return html`<p class="problem" role="alert">${this.problem.message}</p>
        <button class="button" @click=${() => void this.#load(false)}>${t("action.retry")}</button>`;
    }
    if (!this.events) return html`<div aria-busy="true">${[1, 2, 3].map(() => html`<div class="skeleton"></div>`)}</div>`;
    const shown = this.person
      ? this.events.filter(({ person_id, other_id }) => person_id === this.person || other_id === this.person)
      : this.events;
    if (!shown.length && !this.more) return html`<p class="note">${t("history.none")}</p>`;
    return html`<ul>
        ${repeat(
          shown,
          (event) => event.event_id,
          (event) =>
            html`<li class=${event.undone_by ? "undone" : ""}>
              ${icon(ICONS[event.kind] ?? "history")}
              <div>
                <p class="said">${this.#said(event)}</p>
                <p class="when" title=${date(event.created_at, true)}>
                  ${event.undone_by ? t("history.undone", { ago: ago(event.created_at) }) : ago(event.created_at)}
                </p>
              </div>
              ${UNDOABLE.has(event.kind) && !event.undone_by && event.name !== null
                ? html`<button
                    class="button quiet"
                    aria-label=${t("history.undo", { what: this.#said(event) })}
                    @click=${() => void undo([event.event_id])}
                  >
                    ${t("action.undo")}
                  </button>`
                : ""}
            </li>`,
        )}
      </ul>
      ${this.more ? html`<button class="button" @click=${() => void this.#load(true)}>${t("history.more")}</button>` : ""}`;
  }

  /**
   * @param {EventView} event
   * @returns {string}
   */
  #said(event) {
    const name = event.name ?? t("history.erased");
    const other = event.other ?? t("history.erased");
    const n = event.faces ?? 0;
    switch (event.kind) {
      case "create":
        return t("history.create", { name });
      case "rename":
        return t("history.rename", { old: event.old_name ?? name, name: event.new_name ?? name });
      case "confirm":
        return t("history.confirm", { n, name });
      case "reject":
        return t("history.reject", { n, name });
      case "merge":
        return t("history.merge", { name, other });
      case "split":
        return t("history.split", { n, name, other });
      case "undo": {
        const undone = this.events?.find(({ event_id }) => event_id === event.undoes);
        return undone ? t("history.undo", { what: this.#said(undone) }) : t("history.undo_old");
      }
      default:
        return t("history.erase");
    }
  }
}

customElements.define("sf-history", SfHistory);
