/**
 * sf-people: everyone who was seen. Unknown people come first, those seen most before others; several can be chosen and
 * named, or merged. Named people follow.
 *
 * Properties: `route`; its query: `view` ("history").
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { acts, join, seenIn } from "../people.js";
import { navigate } from "../router.js";
import { store, Watch } from "../store.js";
import { t } from "../text.js";
import "./dialog.js";
import "./face.js";
import "./history.js";
import { Selection, selecting } from "./select.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("../types.js").Person} Person */

const PAGE = 200;
/** Unknown people that are shown until more are asked for. */
const FEW = 48;

/** @param {Person} a @param {Person} b */
const bySeen = (a, b) =>
  b.scenes - a.scenes || b.videos - a.videos || a.name.localeCompare(b.name, undefined, { numeric: true });

export class SfPeople extends LitElement {
  static properties = {
    route: { attribute: false },
    people: { state: true },
    problem: { state: true },
    typed: { state: true },
    busy: { state: true },
    all: { state: true },
    filter: { state: true },
  };

  static styles = [
    controls,
    selecting,
    css`
      :host {
        display: flex;
        flex-direction: column;
        width: 100%;
        max-width: calc(var(--width) + 2 * var(--gutter));
        margin: 0 auto;
        padding: var(--s6) var(--gutter) var(--s16);
      }
      .head {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--s2) var(--s3);
        margin-bottom: var(--s6);
      }
      .head h1 {
        margin-right: auto;
      }
      section + section {
        margin-top: var(--s12);
      }
      .over {
        display: flex;
        flex-wrap: wrap;
        align-items: baseline;
        gap: var(--s1) var(--s3);
        margin-bottom: var(--s4);
      }
      .over .field {
        margin-left: auto;
        width: 200px;
      }
      .tiles {
        grid-template-columns: repeat(auto-fill, minmax(148px, 1fr));
      }
      .unknown {
        grid-template-columns: repeat(auto-fill, minmax(184px, 1fr));
      }
      .shell {
        padding: var(--s10) var(--s6);
        border-radius: 16px;
        background: var(--surface);
        display: grid;
        justify-items: start;
        gap: var(--s3);
        color: var(--ink-2);
      }
      .empty {
        flex: 1;
        align-content: center;
        justify-items: center;
        text-align: center;
      }
      .empty > .icon {
        width: 48px;
        height: 48px;
        stroke-width: 1.25;
        color: var(--ink-3);
      }
      .shell h2 {
        color: var(--ink);
      }
      .shell p {
        max-width: 64ch;
      }
      .shell .acts {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
        margin-top: var(--s2);
      }
      .square {
        aspect-ratio: 1;
      }
      .rest {
        margin-top: var(--s5);
      }
      sf-history {
        max-width: 880px;
      }
      .form {
        display: grid;
        gap: var(--s4);
      }
      .form .button {
        justify-self: end;
      }
      @media (max-width: 719px) {
        .tiles,
        .unknown {
          grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
          gap: var(--s4) var(--s3);
        }
        .bar {
          width: 100%;
        }
        .add {
          width: var(--target);
          padding: 0;
        }
        .add span {
          display: none;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    this.selection = new Selection(this);
    /** @type {import("../app.js").Route | null} */
    this.route = null;
    /** @type {Person[] | null} */
    this.people = null;
    /** @type {Error | null} */
    this.problem = null;
    this.typed = "";
    this.busy = false;
    this.all = false;
    this.filter = "";
    this.turn = 0;
    this.soon = 0;
    this.onChange = () => void this.#load();
    this.onPeople = () => {
      clearTimeout(this.soon);
      this.soon = setTimeout(this.onChange, 300);
    };
  }

  connectedCallback() {
    super.connectedCallback();
    acts.addEventListener("change", this.onChange);
    store.addEventListener("people", this.onPeople);
    void this.#load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    acts.removeEventListener("change", this.onChange);
    store.removeEventListener("people", this.onPeople);
    clearTimeout(this.soon);
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (changed.has("route")) document.title = t("people.document");
  }

  async #load() {
    const turn = ++this.turn;
    try {
      /** @type {Person[]} */
      const people = [];
      let after = null;
      do {
        /** @type {import("../types.js").PeoplePage} */
        const page = await ask("/people", { query: { after, limit: PAGE } });
        if (turn !== this.turn) return;
        people.push(...page.people);
        after = page.next_after;
        // What there is of a long list is shown at once.
        if (!this.people) this.people = people;
      } while (after);
      this.people = people;
      this.problem = null;
      this.selection.keep(people.map(({ person_id }) => person_id));
    } catch (error) {
      if (turn === this.turn) this.problem = /** @type {Error} */ (error);
    }
  }

  /** @param {SubmitEvent} event */
  async #name(event) {
    event.preventDefault();
    const chosen = this.#chosen;
    const plan = this.#plan(chosen);
    if (!plan.may || this.busy) return;
    this.busy = true;
    const done = await join(plan.people, plan.name);
    this.busy = false;
    if (!done) return;
    this.typed = "";
    this.selection.clear();
  }

  /** @returns {Person[]} */
  get #chosen() {
    return (this.people ?? []).filter(({ person_id }) => this.selection.has(person_id)).sort(bySeen);
  }

  /**
   * What happens with those who are chosen and the typed name.
   * @param {Person[]} chosen
   * @returns {{people: Person[], name?: string, label: string, may: boolean}}
   */
  #plan(chosen) {
    const name = this.typed.trim().replace(/\s+/g, " ");
    const named = chosen.filter(({ kind }) => kind === "named");
    if (name) {
      const same = this.people?.find((person) => person.name.toLowerCase() === name.toLowerCase());
      if (same) {
        const others = chosen.filter((person) => person !== same);
        return { people: [same, ...others], label: t("people.do.into", { name: same.name }), may: others.length > 0 };
      }
      const first = named[0] ?? chosen[0];
      const people = [first, ...chosen.filter((person) => person !== first)];
      return { people, name, label: t(chosen.length > 1 ? "people.do.as_one" : "people.do.name"), may: true };
    }
    if (chosen.length < 2) return { people: chosen, label: t("people.do.name"), may: false };
    const first = named[0] ?? chosen[0];
    const people = [first, ...chosen.filter((person) => person !== first)];
    const label = named.length ? t("people.do.into", { name: first.name }) : t("people.do.merge");
    return { people, label, may: true };
  }

  /** @param {SubmitEvent} event */
  async #add(event) {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const name = String(new FormData(form).get("name")).trim();
    const files = /** @type {HTMLInputElement} */ (form.querySelector("[type=file]")).files ?? [];
    try {
      const person = /** @type {Person} */ (await ask("/people", { body: { name } }));
      if (!person.accepted) toast(t("people.exists", { name: person.name }));
      for (const file of files) {
        await ask(`/people/${person.person_id}/photos`, { body: file, headers: { "Content-Type": file.type } });
      }
      navigate(`/people/${person.person_id}`);
    } catch (error) {
      toastError(error);
      this.onChange();
    }
  }

  #ask() {
    /** @type {any} */ (this.renderRoot.querySelector("sf-dialog")).show();
  }

  render() {
    const history = this.route?.query.get("view") === "history";
    return html`
      <div class="head">
        <h1>${t("app.people")}</h1>
        <nav class="tabs" aria-label=${t("people.tabs")}>
          <a href="/people" aria-current=${history ? nothing : "page"}>${t("people.faces")}</a>
          <a href="/people?view=history" aria-current=${history ? "page" : nothing}>${t("people.history")}</a>
        </nav>
        <button class="button add" aria-label=${t("people.add")} @click=${() => this.#ask()}>
          ${icon("add", true)} <span>${t("people.add")}</span>
        </button>
      </div>
      ${history ? html`<sf-history></sf-history>` : this.#faces()}
      <sf-dialog label=${t("people.add")}>
        <form class="form" @submit=${this.#add}>
          <label class="labelled">${t("people.name")}
            <input class="field" name="name" required maxlength="200" autocomplete="off" autofocus />
          </label>
          <label class="labelled">${t("people.add_photos")}
            <input type="file" multiple accept="image/jpeg,image/png,image/webp" />
          </label>
          <p class="note">${t("people.add_text")}</p>
          <button class="button solid">${t("people.add")}</button>
        </form>
      </sf-dialog>
    `;
  }

  #faces() {
    if (!this.people) {
      return this.problem
        ? html`<div class="shell" role="alert">
            <p>${this.problem.message}</p>
            <button class="button" @click=${this.onChange}>${t("action.retry")}</button>
          </div>`
        : html`<ul class="tiles unknown" aria-busy="true" aria-label=${t("people.loading")}>
            ${[1, 2, 3, 4, 5, 6].map(() => html`<li class="skeleton square"></li>`)}
          </ul>`;
    }
    if (!this.people.length) return this.#empty();
    const filter = this.filter.trim().toLowerCase();
    const unknown = this.people.filter(({ kind }) => kind === "unknown").sort(bySeen);
    const everyone = this.people.filter(({ kind }) => kind === "named");
    const named = everyone.filter(({ name }) => name.toLowerCase().includes(filter));
    const shown = this.all ? unknown : unknown.slice(0, FEW);
    const order = [...shown, ...named].map(({ person_id }) => person_id);
    const choosing = this.selection.size ? "choosing" : "";
    return html`
      ${unknown.length
        ? html`<section aria-labelledby="unknown">
            <div class="over">
              <h2 id="unknown">${t("people.who", { n: unknown.length })}</h2>
              <p class="note">${t("people.who_text")}</p>
            </div>
            <ul class="tiles unknown ${choosing}">
              ${repeat(shown, ({ person_id }) => person_id, (person) => this.#tile(person, order))}
            </ul>
            ${shown.length < unknown.length
              ? html`<button class="button rest" @click=${() => (this.all = true)}>
                  ${t("people.more", { n: unknown.length - shown.length })}
                </button>`
              : ""}
          </section>`
        : html`<section class="shell">
            <h2>${t("people.known.title")}</h2>
            <p>${t("people.known.text")}</p>
          </section>`}
      ${everyone.length
        ? html`<section aria-labelledby="named">
            <div class="over">
              <h2 id="named">${t("people.named_people", { n: everyone.length })}</h2>
              ${everyone.length > 12
                ? html`<input
                    class="field"
                    type="search"
                    aria-label=${t("people.filter")}
                    placeholder=${t("people.filter")}
                    .value=${this.filter}
                    @input=${(/** @type {any} */ event) => (this.filter = event.target.value)}
                  />`
                : ""}
            </div>
            <ul class="tiles ${choosing}">
              ${repeat(named, ({ person_id }) => person_id, (person) => this.#tile(person, order))}
            </ul>
            ${named.length ? "" : html`<p class="note">${t("people.filter_none", { name: this.filter })}</p>`}
          </section>`
        : ""}
      ${this.#bar()}
    `;
  }

  /**
   * @param {Person} person
   * @param {string[]} order
   */
  #tile(person, order) {
    const id = person.person_id;
    const on = this.selection.has(id);
    return html`<li class="tile ${on ? "on" : ""}" data-person=${person.name}>
      <label class="pick">
        <input
          type="checkbox"
          aria-label=${t("people.choose", { name: person.name })}
          .checked=${on}
          @click=${(/** @type {MouseEvent} */ event) => this.selection.toggle(id, event, order)}
        />
      </label>
      <a href=${`/people/${id}`}>
        <sf-face .person=${person}></sf-face>
        <p class="title" title=${person.name}>${person.name}</p>
        <p class="sub">${person.state === "working" ? t("people.working", { percent: Math.round(person.progress * 100) }) : seenIn(person)}</p>
      </a>
    </li>`;
  }

  #bar() {
    const chosen = this.#chosen;
    if (!chosen.length) return "";
    const plan = this.#plan(chosen);
    return html`<div class="bar" role="region" aria-label=${t("people.bar")}>
      <span class="count" role="status">${t("people.chosen", { n: chosen.length })}</span>
      <form @submit=${this.#name}>
        <input
          class="field"
          list="names"
          maxlength="200"
          autocomplete="off"
          aria-label=${t("people.name")}
          placeholder=${t("people.name")}
          .value=${this.typed}
          @input=${(/** @type {any} */ event) => (this.typed = event.target.value)}
        />
        <datalist id="names">
          ${this.people?.filter(({ kind }) => kind === "named").map(({ name }) => html`<option value=${name}></option>`)}
        </datalist>
        <button class="button solid" ?disabled=${!plan.may || this.busy}>${plan.label}</button>
      </form>
      <button class="button quiet icon-only" aria-label=${t("people.clear")} @click=${() => this.selection.clear()}>${icon("close")}</button>
    </div>`;
  }

  #empty() {
    return html`<div class="shell empty">
      ${icon("people")}
      <h2>${t("people.empty.title")}</h2>
      <p>${t("people.empty.text")}</p>
      <p>${t("people.empty.add")}</p>
      <div class="acts">
        <a class="button solid" href="/library">${t("people.empty.library")}</a>
        <button class="button" @click=${() => this.#ask()}>${t("people.add")}</button>
      </div>
    </div>`;
  }
}

customElements.define("sf-people", SfPeople);
