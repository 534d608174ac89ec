/**
 * sf-filters: the filters of a search, each a chip with a panel.
 *
 * Properties: `criteria` (see criteria.js).
 * Events: `sf-change` (detail: the changed criteria).
 */

import { LitElement, css, html } from "lit";
import { ask, pause } from "../api.js";
import { controls } from "../controls.js";
import { filters } from "../criteria.js";
import { icon } from "../icons.js";
import { store, Watch } from "../store.js";
import { date, language, parseTime, t, time, videoName } from "../text.js";
import "./menu.js";
import { toastError } from "./toast.js";

/** @typedef {import("../criteria.js").Criteria} Criteria */
/** @typedef {import("../types.js").PersonView} PersonView */

/** Offered before any is known; any other code can stand in the address. */
const LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "tr", "ar", "hi", "zh", "ja", "ko"];

export class SfFilters extends LitElement {
  static properties = { criteria: { attribute: false }, people: { state: true }, narrow: { state: true } };

  static styles = [
    controls,
    css`
      .row {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
      }
      .options {
        display: grid;
        max-height: 280px;
        overflow: auto;
      }
      .options label {
        display: flex;
        align-items: center;
        gap: var(--s3);
        min-height: var(--target);
        padding: 0 var(--s2);
        border-radius: 6px;
        font-size: var(--text-s);
        cursor: pointer;
        overflow-wrap: anywhere;
      }
      .options label:hover {
        background: var(--hover);
      }
      input[type="checkbox"] {
        width: 16px;
        height: 16px;
        flex: none;
        margin: 0;
        accent-color: var(--solid);
      }
      .pair {
        display: grid;
        grid-template-columns: 1fr 1fr;
        gap: var(--s2);
      }
      .pair .field {
        width: 100%;
        min-width: 0;
      }
      .wide {
        width: 100%;
      }
      @media (max-width: 719px) {
        .row {
          flex-wrap: nowrap;
          overflow-x: auto;
          padding: 2px var(--gutter);
          scrollbar-width: none;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {Criteria} */
    this.criteria = /** @type {any} */ (undefined);
    /** @type {PersonView[] | null} */
    this.people = null;
    this.narrow = "";
    this.asked = false;
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    if (!changed.has("criteria")) return;
    if (this.criteria.people.length) void this.#meet();
    for (const id of this.criteria.videos) void store.video(id);
  }

  /** Learn the names of people, once. */
  async #meet() {
    if (this.asked) return;
    this.asked = true;
    try {
      /** @type {{people: PersonView[]}} */
      const page = await ask("/people", { query: { kind: "named" } });
      this.people = page.people;
    } catch (error) {
      toastError(error);
      await pause(2000);
      this.asked = false;
    }
  }

  /** @param {Partial<Criteria>} change */
  #tell(change) {
    this.dispatchEvent(new CustomEvent("sf-change", { detail: change }));
  }

  /**
   * @param {"people" | "videos" | "languages"} name
   * @param {string} value
   */
  #toggle(name, value) {
    const chosen = this.criteria[name];
    this.#tell({ [name]: chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value] });
  }

  /**
   * @param {Event} event
   * @param {"from" | "to"} name
   */
  #span(event, name) {
    const input = /** @type {HTMLInputElement} */ (event.currentTarget);
    const value = input.value.trim() ? parseTime(input.value) : null;
    input.setCustomValidity(input.value.trim() && value === null ? t("filter.time.wrong") : "");
    if (input.reportValidity()) this.#tell({ [name]: value });
  }

  render() {
    if (!this.criteria) return "";
    const { criteria } = this;
    return html`<div class="row" role="group" aria-label=${t("filter.label")}>
      <sf-menu
        icon="people"
        .label=${this.#label("filter.people", criteria.people.map((id) => this.#person(id)))}
        ?on=${criteria.people.length > 0}
        @sf-open=${() => this.#meet()}
      >
        ${this.people === null
          ? html`<p class="note">${t("filter.people.wait")}</p>`
          : this.people.length
            ? this.#options("people", this.people.map(({ person_id, name }) => ({ value: person_id, name })))
            : html`<p class="note">${t("filter.people.none")}</p>`}
      </sf-menu>
      <sf-menu
        icon="film"
        .label=${this.#label("filter.videos", criteria.videos.map((id) => this.#video(id)))}
        ?on=${criteria.videos.length > 0}
      >
        <input
          class="field wide"
          type="search"
          aria-label=${t("filter.videos.find")}
          placeholder=${t("filter.videos.find")}
          @input=${(/** @type {InputEvent} */ event) => (this.narrow = /** @type {HTMLInputElement} */ (event.target).value)}
        />
        ${this.#options("videos", this.#videos())}
      </sf-menu>
      <sf-menu icon="clock" .label=${this.#spanLabel()} ?on=${criteria.from !== null || criteria.to !== null}>
        <div class="pair">
          <label class="labelled">
            ${t("filter.time.from")}
            <input
              class="field"
              placeholder="0:00"
              .value=${criteria.from === null ? "" : time(criteria.from)}
              @change=${(/** @type {Event} */ event) => this.#span(event, "from")}
            />
          </label>
          <label class="labelled">
            ${t("filter.time.to")}
            <input
              class="field"
              placeholder="1:30:00"
              .value=${criteria.to === null ? "" : time(criteria.to)}
              @change=${(/** @type {Event} */ event) => this.#span(event, "to")}
            />
          </label>
        </div>
        <p class="note">${t("filter.time.hint")}</p>
      </sf-menu>
      <sf-menu
        icon="language"
        .label=${this.#label("filter.languages", criteria.languages.map(language))}
        ?on=${criteria.languages.length > 0}
      >
        ${this.#options(
          "languages",
          [...new Set([...criteria.languages, ...LANGUAGES])].map((value) => ({ value, name: language(value) })),
        )}
      </sf-menu>
      <sf-menu icon="calendar" .label=${this.#dateLabel()} ?on=${Boolean(criteria.since || criteria.until)}>
        <div class="pair">
          <label class="labelled">
            ${t("filter.date.since")}
            <input
              class="field"
              type="date"
              .value=${criteria.since}
              @change=${(/** @type {Event} */ event) =>
                this.#tell({ since: /** @type {HTMLInputElement} */ (event.currentTarget).value })}
            />
          </label>
          <label class="labelled">
            ${t("filter.date.until")}
            <input
              class="field"
              type="date"
              .value=${criteria.until}
              @change=${(/** @type {Event} */ event) =>
                this.#tell({ until: /** @type {HTMLInputElement} */ (event.currentTarget).value })}
            />
          </label>
        </div>
        <p class="note">${t("filter.date.hint")}</p>
      </sf-menu>
      ${filters(criteria)
        ? html`<button
            class="button quiet"
            @click=${() =>
              this.#tell({ people: [], videos: [], languages: [], from: null, to: null, since: "", until: "" })}
          >
            ${icon("close", true)} ${t("filter.clear")}
          </button>`
        : ""}
    </div>`;
  }

  /**
   * @param {"people" | "videos" | "languages"} name
   * @param {{value: string, name: string}[]} options
   */
  #options(name, options) {
    return html`<div class="options">
      ${options.map(
        (option) => html`<label>
          <input
            type="checkbox"
            .checked=${this.criteria[name].includes(option.value)}
            @change=${() => this.#toggle(name, option.value)}
          />
          ${option.name}
        </label>`,
      )}
    </div>`;
  }

  #videos() {
    const wanted = this.narrow.trim().toLowerCase();
    const found = [...store.videos.values()]
      .filter((video) => video.published_run !== null)
      .map((video) => ({ value: video.video_id, name: videoName(video) }))
      .filter(({ name }) => name.toLowerCase().includes(wanted));
    return found.slice(0, 100);
  }

  /**
   * @param {import("../text.js").MessageKey} key
   * @param {string[]} names
   */
  #label(key, names) {
    if (!names.length) return t(key);
    const first = names[0].length > 24 ? `${names[0].slice(0, 23)}…` : names[0];
    return names.length === 1 ? first : t("filter.several", { first, n: names.length - 1 });
  }

  #spanLabel() {
    const { from, to } = this.criteria;
    if (from !== null && to !== null) return `${time(from)} – ${time(to)}`;
    if (from !== null) return t("filter.time.after", { time: time(from) });
    return to === null ? t("filter.time") : t("filter.time.before", { time: time(to) });
  }

  #dateLabel() {
    const { since, until } = this.criteria;
    const day = (/** @type {string} */ text) => date(`${text}T00:00`);
    if (since && until) return `${day(since)} – ${day(until)}`;
    if (since) return t("filter.date.after", { date: day(since) });
    return until ? t("filter.date.before", { date: day(until) }) : t("filter.date");
  }

  /** @param {string} id */
  #person(id) {
    return this.people?.find((person) => person.person_id === id)?.name ?? id;
  }

  /** @param {string} id */
  #video(id) {
    const video = store.videos.get(id);
    return video ? videoName(video) : id;
  }
}

customElements.define("sf-filters", SfFilters);
