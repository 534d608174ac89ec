/**
 * sf-person: one person: the moments in all videos, photos, history; rename, merge, split, "not this person", erase.
 *
 * Properties: `route`; its params: `id`.
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask, picture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { acts, join, judge, rename, seenIn, split } from "../people.js";
import { navigate } from "../router.js";
import { store, Watch } from "../store.js";
import { date, number, similarity, t, time, videoName } from "../text.js";
import "./acts.js";
import "./dialog.js";
import "./face.js";
import "./history.js";
import { Selection, selecting } from "./select.js";
import { toastError } from "./toast.js";

/** @typedef {import("../types.js").Person} Person */
/** @typedef {import("../types.js").FaceView} FaceView */
/** @typedef {import("../types.js").PhotoView} PhotoView */

const PAGE = 200;
const POLL_MS = 1500;

export class SfPerson extends LitElement {
  static properties = {
    route: { attribute: false },
    person: { state: true },
    faces: { state: true },
    photos: { state: true },
    next: { state: true },
    problem: { state: true },
    renaming: { state: true },
    typed: { state: true },
    others: { state: true },
    sending: { state: true },
  };

  static styles = [
    controls,
    selecting,
    css`
      :host {
        width: 100%;
        max-width: calc(var(--width) + 2 * var(--gutter));
        margin: 0 auto;
        padding: var(--s6) var(--gutter) var(--s16);
      }
      .back {
        display: inline-flex;
        align-items: center;
        gap: var(--s2);
        min-height: var(--target);
        color: var(--ink-2);
        font-size: var(--text-s);
        text-decoration: none;
      }
      .back:hover {
        text-decoration: underline;
      }
      .who {
        display: grid;
        grid-template-columns: 112px minmax(0, 1fr) auto;
        align-items: center;
        gap: var(--s5);
        margin: var(--s2) 0 var(--s8);
      }
      .who sf-face {
        --face-radius: 16px;
      }
      .who h1 {
        overflow-wrap: anywhere;
      }
      .who p {
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      .who .acts {
        display: flex;
        gap: var(--s2);
        align-self: center;
      }
      .who form {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
      }
      .who form .field {
        flex: 1 1 200px;
        max-width: 360px;
        font-size: var(--text-l);
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
      /* Videos with few moments stand side by side. */
      .films {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s6) var(--s8);
      }
      .films > div {
        flex: 0 0 min(100%, max(176px, var(--moments) * 188px - 12px));
        min-width: 0;
      }
      .film {
        margin-bottom: var(--s3);
        font-size: var(--text-m);
        overflow-wrap: anywhere;
      }
      .film a {
        text-decoration: none;
      }
      .film a:hover {
        text-decoration: underline;
      }
      .film .note {
        font-weight: 400;
        margin-left: var(--s2);
      }
      .moments {
        grid-template-columns: repeat(auto-fill, minmax(176px, 1fr));
        gap: var(--s4) var(--s3);
      }
      .moments .line {
        display: flex;
        align-items: center;
        gap: var(--s2);
        margin-top: 6px;
        font-size: var(--text-xs);
        line-height: 16px;
        color: var(--ink-2);
      }
      .moments .time {
        color: var(--ink);
        font-size: var(--text-s);
        font-weight: var(--strong);
      }
      .moments .line .icon {
        color: var(--good);
      }
      .photos {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(176px, 1fr));
        gap: var(--s4) var(--s3);
      }
      .photos li {
        position: relative;
        min-width: 0;
      }
      .photos img {
        display: block;
        width: 100%;
        aspect-ratio: 1;
        object-fit: cover;
        object-position: 50% 12%;
        border-radius: var(--radius);
        background: var(--surface);
      }
      .photos .refused img {
        filter: grayscale(1);
        opacity: 0.6;
      }
      .photos .state {
        display: flex;
        align-items: flex-start;
        gap: 6px;
        margin-top: 6px;
        font-size: var(--text-xs);
        line-height: 16px;
        color: var(--ink-2);
      }
      .photos .good .state .icon {
        color: var(--good);
      }
      .photos .refused .state {
        color: var(--bad);
      }
      .photos .remove {
        position: absolute;
        top: 0;
        right: 0;
        border: 0;
        background: none;
        color: #fff;
        width: var(--target);
        height: var(--target);
        padding: 6px;
        cursor: pointer;
      }
      .photos .remove span {
        display: grid;
        place-items: center;
        width: 28px;
        height: 28px;
        border-radius: 50%;
        background: var(--scrim);
      }
      .new {
        display: grid;
        place-content: center;
        justify-items: center;
        gap: var(--s2);
        width: 100%;
        aspect-ratio: 1;
        border: 2px dashed var(--line-strong);
        border-radius: var(--radius);
        background: none;
        color: var(--ink-2);
        font-size: var(--text-s);
        font-weight: var(--strong);
        cursor: pointer;
      }
      .new:hover {
        background: var(--hover);
      }
      sf-history {
        max-width: 880px;
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
      .shell p {
        max-width: 64ch;
      }
      .form {
        display: grid;
        gap: var(--s4);
        font-size: var(--text-s);
      }
      .form .field {
        width: 100%;
      }
      .form .button {
        justify-self: end;
      }
      .erase {
        border-color: var(--bad) !important;
      }
      .picks {
        display: grid;
        gap: 2px;
        max-height: 320px;
        overflow: auto;
        margin: 0 calc(-1 * var(--s2));
      }
      .picks button {
        display: grid;
        grid-template-columns: 44px minmax(0, 1fr);
        align-items: center;
        gap: var(--s3);
        width: 100%;
        padding: 6px var(--s2);
        border: 0;
        border-radius: var(--radius);
        background: none;
        text-align: left;
        cursor: pointer;
      }
      .picks button:hover {
        background: var(--hover);
      }
      .picks .note {
        font-size: var(--text-xs);
        display: block;
      }
      .receipt {
        max-width: 560px;
      }
      table {
        width: 100%;
        border-collapse: collapse;
        font-size: var(--text-s);
      }
      caption {
        text-align: left;
        font-weight: var(--strong);
        padding: var(--s4) 0 var(--s2);
      }
      td,
      th {
        padding: var(--s2) 0;
        border-top: 1px solid var(--line);
        text-align: left;
        font-weight: 400;
      }
      td {
        text-align: right;
        font-variant-numeric: tabular-nums;
      }
      .skeleton.head {
        height: 112px;
        margin: var(--s6) 0;
      }
      @media (max-width: 719px) {
        .who {
          grid-template-columns: 80px minmax(0, 1fr);
          gap: var(--s3);
        }
        .who .acts {
          grid-column: 1 / -1;
        }
        .who .acts > :first-child.solid {
          flex: 1;
        }
        .films > div {
          flex-basis: 100%;
        }
        .wide {
          display: none;
        }
        .moments,
        .photos {
          grid-template-columns: repeat(auto-fill, minmax(148px, 1fr));
        }
        .bar {
          width: 100%;
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
    /** @type {Person | null} */
    this.person = null;
    /** @type {FaceView[] | null} */
    this.faces = null;
    /** @type {PhotoView[]} */
    this.photos = [];
    /** @type {string | null} */
    this.next = null;
    /** @type {any} */
    this.problem = null;
    this.renaming = false;
    this.typed = "";
    /** @type {Person[] | null} Who it can be merged into. */
    this.others = null;
    this.sending = 0;
    this.turn = 0;
    this.poll = 0;
    this.onChange = () => void this.#load();
  }

  connectedCallback() {
    super.connectedCallback();
    acts.addEventListener("change", this.onChange);
    store.addEventListener("people", this.onChange);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    acts.removeEventListener("change", this.onChange);
    store.removeEventListener("people", this.onChange);
    clearTimeout(this.poll);
    this.turn++;
  }

  get #id() {
    return this.route?.params.id ?? "";
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (changed.has("route") && this.person?.person_id !== this.#id) {
      this.person = null;
      this.faces = null;
      this.photos = [];
      this.problem = null;
      this.renaming = false;
      this.selection.clear();
      void this.#load();
    }
    document.title = t("person.document", { name: this.person?.name ?? t("app.people") });
  }

  async #load() {
    const turn = ++this.turn;
    const id = this.#id;
    clearTimeout(this.poll);
    try {
      const person = /** @type {Person} */ (await ask(`/people/${id}`));
      if (turn !== this.turn) return;
      this.person = person;
      this.problem = null;
      if (gone(person)) {
        if (person.state === "erasing") this.poll = setTimeout(this.onChange, POLL_MS);
        return;
      }
      const limit = Math.min(1000, Math.max(PAGE, this.faces?.length ?? 0));
      const [page, { photos }] = await Promise.all([
        /** @type {Promise<import("../types.js").FacePage>} */ (ask(`/people/${id}/faces`, { query: { limit } })),
        /** @type {Promise<{photos: PhotoView[]}>} */ (ask(`/people/${id}/photos`)),
      ]);
      if (turn !== this.turn) return;
      this.faces = page.faces;
      this.next = page.next_after;
      this.photos = photos;
      this.selection.keep(page.faces.map(({ track_id }) => track_id));
      for (const video of new Set(page.faces.map(({ video_id }) => video_id))) void store.video(video);
      if (person.state === "working" || photos.some(({ state }) => state === "pending")) {
        this.poll = setTimeout(this.onChange, POLL_MS);
      }
    } catch (error) {
      if (turn === this.turn) this.problem = error;
    }
  }

  async #more() {
    const page = /** @type {import("../types.js").FacePage} */ (
      await ask(`/people/${this.#id}/faces`, { query: { limit: PAGE, after: this.next } })
    );
    this.faces = [...(this.faces ?? []), ...page.faces];
    this.next = page.next_after;
    for (const video of new Set(page.faces.map(({ video_id }) => video_id))) void store.video(video);
  }

  /** @param {string} name */
  #dialog(name) {
    return /** @type {import("./dialog.js").SfDialog} */ (this.renderRoot.querySelector(`sf-dialog.${name}`));
  }

  /** @param {SubmitEvent} event */
  async #rename(event) {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const name = String(new FormData(form).get("name")).trim().replace(/\s+/g, " ");
    const person = this.person;
    if (!person || !name) return;
    if (name === person.name || (await rename(person, name))) this.renaming = false;
  }

  async #beginRename() {
    this.renaming = true;
    await this.updateComplete;
    /** @type {HTMLInputElement | null} */ (this.renderRoot.querySelector(".who .field"))?.select();
  }

  async #beginMerge() {
    this.typed = "";
    this.others = null;
    this.#dialog("merge").show();
    try {
      const page = /** @type {import("../types.js").PeoplePage} */ (await ask("/people", { query: { limit: 1000 } }));
      this.others = page.people
        .filter(({ person_id }) => person_id !== this.#id)
        .sort((a, b) => Number(a.kind === "unknown") - Number(b.kind === "unknown") || a.name.localeCompare(b.name));
    } catch (error) {
      toastError(error);
    }
  }

  /** @param {Person} into */
  async #merge(into) {
    this.#dialog("merge").close();
    if (this.person && (await join([into, this.person]))) navigate(`/people/${into.person_id}`, { replace: true });
  }

  /** @param {boolean} is */
  async #judge(is) {
    if (this.person && (await judge(this.person, [...this.selection.ids], is))) this.selection.clear();
  }

  /** @param {SubmitEvent} event */
  async #split(event) {
    event.preventDefault();
    const name = String(new FormData(/** @type {HTMLFormElement} */ (event.currentTarget)).get("name")).trim();
    this.#dialog("split").close();
    if (this.person && (await split(this.person, [...this.selection.ids], name || null))) this.selection.clear();
  }

  /** @param {SubmitEvent} event */
  async #erase(event) {
    event.preventDefault();
    this.#dialog("erase").close();
    try {
      this.person = /** @type {Person} */ (await ask(`/people/${this.#id}`, { method: "DELETE" }));
      this.faces = null;
      this.photos = [];
      acts.dispatchEvent(new Event("change"));
    } catch (error) {
      toastError(error);
    }
  }

  /** @param {Event} event */
  async #addPhotos(event) {
    const input = /** @type {HTMLInputElement} */ (event.currentTarget);
    const files = [...(input.files ?? [])];
    input.value = "";
    this.sending += files.length;
    for (const file of files) {
      try {
        await ask(`/people/${this.#id}/photos`, { body: file, headers: { "Content-Type": file.type } });
      } catch (error) {
        toastError(error);
      }
      this.sending--;
    }
    void this.#load();
  }

  /** @param {PhotoView} photo */
  async #removePhoto(photo) {
    try {
      await ask(`/people/${this.#id}/photos/${photo.photo_id}`, { method: "DELETE" });
    } catch (error) {
      toastError(error);
    }
    void this.#load();
  }

  render() {
    const person = this.person;
    const back = html`<a class="back" href="/people">${icon("back", true)} ${t("person.all")}</a>`;
    if (!person) {
      return html`${back}
      ${this.problem
        ? html`<div class="shell" role="alert">
            <p>${this.problem.message}</p>
            <button class="button" @click=${this.onChange}>${t("action.retry")}</button>
          </div>`
        : html`<div class="skeleton head" aria-busy="true" aria-label=${t("people.loading")}></div>`}`;
    }
    if (gone(person)) return html`${back} ${this.#receipt(person)}`;
    return html`${back} ${this.#head(person)} ${this.#moments(person)} ${this.#photoList(person)}
      <section aria-labelledby="history">
        <div class="over"><h2 id="history">${t("people.history")}</h2></div>
        <sf-history .person=${person.person_id}></sf-history>
      </section>
      ${this.#bar()} ${this.#dialogs(person)}`;
  }

  /** @param {Person} person */
  #head(person) {
    const working = person.state === "working";
    return html`<div class="who">
      <sf-face .person=${person} .zoom=${0.6}></sf-face>
      <div>
        ${this.renaming
          ? html`<form @submit=${this.#rename}>
              <input
                class="field"
                name="name"
                required
                maxlength="200"
                autocomplete="off"
                aria-label=${t("people.name")}
                .value=${person.kind === "unknown" ? "" : person.name}
                placeholder=${t("people.name")}
                @keydown=${(/** @type {KeyboardEvent} */ event) => event.key === "Escape" && (this.renaming = false)}
              />
              <button class="button solid">${t("person.save")}</button>
              <button class="button quiet" type="button" @click=${() => (this.renaming = false)}>${t("action.cancel")}</button>
            </form>`
          : html`<h1>${person.name}</h1>`}
        <p>${seenIn(person)}${working ? ` · ${t("people.working", { percent: Math.round(person.progress * 100) })}` : ""}</p>
      </div>
      <div class="acts">
        ${this.renaming
          ? ""
          : html`<button class="button ${person.kind === "unknown" ? "solid" : "wide"}" @click=${this.#beginRename}>
              ${icon("edit", true)} ${t(person.kind === "unknown" ? "person.name" : "person.rename")}
            </button>`}
        <a class="button wide" href=${`/?people=${encodeURIComponent(person.person_id)}`} ?hidden=${!person.scenes}>
          ${icon("search", true)} ${t("person.search")}
        </a>
        <sf-acts .label=${t("library.more", { name: person.name })} .items=${this.#acts()}></sf-acts>
      </div>
    </div>`;
  }

  /** @returns {import("./acts.js").Item[]} */
  #acts() {
    return [
      { label: t("person.rename"), icon: "edit", act: () => void this.#beginRename() },
      { label: t("person.merge"), icon: "merge", act: () => void this.#beginMerge() },
      { label: t("person.erase"), icon: "trash", danger: true, act: () => this.#dialog("erase").show() },
    ];
  }

  /** @param {Person} person */
  #moments(person) {
    const faces = this.faces;
    if (!faces) return html`<div class="skeleton head" aria-busy="true" aria-label=${t("people.loading")}></div>`;
    if (!faces.length) {
      return html`<section class="shell">
        <h2>${t("person.unseen.title")}</h2>
        <p>${t(person.good_photos ? "person.unseen.text" : "person.unseen.photos")}</p>
      </section>`;
    }
    /** @type {Map<string, FaceView[]>} */
    const films = new Map();
    for (const face of faces) films.set(face.video_id, [...(films.get(face.video_id) ?? []), face]);
    for (const some of films.values()) some.sort((a, b) => a.ts_s - b.ts_s);
    const order = [...films.values()].flat().map(({ track_id }) => track_id);
    return html`<section aria-labelledby="moments">
      <div class="over">
        <h2 id="moments">${t("person.moments")}</h2>
        <p class="note">${t("person.moments_text", { name: person.name })}</p>
      </div>
      <div class="films">${repeat(
        films,
        ([id]) => id,
        ([id, some]) => html`<div .style=${`--moments: ${some.length}`}>
          <h3 class="film">
            <a href=${`/v/${id}`}>${videoName(store.videos.get(id) ?? { video_id: id })}</a
            ><span class="note">${t("people.moments", { n: some.length })}</span>
          </h3>
          <ul class="tiles moments ${this.selection.size ? "choosing" : ""}">
            ${repeat(some, ({ track_id }) => track_id, (face) => this.#moment(person, face, order))}
          </ul>
        </div>`,
      )}</div>
      ${this.next ? html`<button class="button rest" @click=${this.#more}>${t("person.more")}</button>` : ""}
    </section>`;
  }

  /**
   * @param {Person} person
   * @param {FaceView} face
   * @param {string[]} order
   */
  #moment(person, face, order) {
    const on = this.selection.has(face.track_id);
    const at = time(face.ts_s);
    return html`<li class="tile ${on ? "on" : ""}">
      <label class="pick">
        <input
          type="checkbox"
          aria-label=${t("person.choose", { time: at })}
          .checked=${on}
          @click=${(/** @type {MouseEvent} */ event) => this.selection.toggle(face.track_id, event, order)}
        />
      </label>
      <a href=${`/v/${face.video_id}?t=${Math.floor(face.ts_s * 10) / 10}`}>
        <sf-face .src=${face.keyframe_key} .box=${face.box} .ratio=${4 / 3} .zoom=${0.42}></sf-face>
        <p class="line">
          <span class="only-read">${person.name}</span>
          <span class="time">${at}</span>
          ${face.decided_by === "human"
            ? html`${icon("user_check", true)} ${t("person.confirmed")}`
            : face.similarity === null
              ? ""
              : t("person.similarity", { value: similarity(face.similarity) })}
        </p>
      </a>
    </li>`;
  }

  /** @param {Person} person */
  #photoList(person) {
    return html`<section aria-labelledby="photos">
      <div class="over">
        <h2 id="photos">${t("person.photos")}</h2>
        <p class="note">${t("person.photos_text")}</p>
      </div>
      <ul class="photos">
        ${repeat(
          this.photos,
          ({ photo_id }) => photo_id,
          (photo) => this.#photo(person, photo),
        )}
        <li>
          <button class="new" @click=${() => /** @type {HTMLElement} */ (this.renderRoot.querySelector("#file")).click()}>
            ${icon("add")} ${this.sending ? t("person.sending", { n: this.sending }) : t("person.add_photo")}
          </button>
          <input
            id="file"
            type="file"
            multiple
            hidden
            accept="image/jpeg,image/png,image/webp"
            aria-label=${t("person.add_photo")}
            @change=${this.#addPhotos}
          />
        </li>
      </ul>
    </section>`;
  }

  /**
   * @param {Person} person
   * @param {PhotoView} photo
   */
  #photo(person, photo) {
    const bad = photo.state === "refused" || photo.state === "failed";
    return html`<li class=${bad ? "refused" : photo.state}>
      <img src=${picture(photo.storage_key)} alt=${t("person.photo", { name: person.name })} loading="lazy" />
      <button class="remove" aria-label=${t("person.remove_photo")} title=${t("person.remove_photo")} @click=${() => void this.#removePhoto(photo)}>
        <span>${icon("close", true)}</span>
      </button>
      <p class="state">
        ${icon(bad ? "warning" : photo.state === "good" ? "check" : "clock", true)}
        <span>${bad ? (photo.error ?? photo.error_class) : t(photo.state === "good" ? "person.photo_good" : "person.photo_pending")}</span>
      </p>
    </li>`;
  }

  #bar() {
    const n = this.selection.size;
    if (!n) return "";
    return html`<div class="bar" role="region" aria-label=${t("people.bar")}>
      <span class="count" role="status">${t("person.chosen", { n })}</span>
      <button class="button" @click=${() => void this.#judge(false)}>${icon("close", true)} ${t("person.not")}</button>
      <button class="button" @click=${() => this.#dialog("split").show()}>${icon("split", true)} ${t("person.split")}</button>
      <button class="button" @click=${() => void this.#judge(true)}>${icon("user_check", true)} ${t("person.confirm")}</button>
      <button class="button quiet icon-only" aria-label=${t("people.clear")} @click=${() => this.selection.clear()}>${icon("close")}</button>
    </div>`;
  }

  /** @param {Person} person */
  #dialogs(person) {
    const typed = this.typed.trim().toLowerCase();
    const others = (this.others ?? []).filter(({ name }) => name.toLowerCase().includes(typed)).slice(0, 60);
    return html`
      <sf-dialog class="split" label=${t("person.split_title", { n: this.selection.size })}>
        <form class="form" @submit=${this.#split}>
          <label class="labelled">${t("person.split_name")}
            <input class="field" name="name" maxlength="200" autocomplete="off" autofocus />
          </label>
          <p class="note">${t("person.split_text")}</p>
          <button class="button solid">${t("person.split")}</button>
        </form>
      </sf-dialog>
      <sf-dialog class="merge" label=${t("person.merge_title", { name: person.name })}>
        <div class="form">
          <input
            class="field"
            type="search"
            autofocus
            aria-label=${t("people.filter")}
            placeholder=${t("people.filter")}
            .value=${this.typed}
            @input=${(/** @type {any} */ event) => (this.typed = event.target.value)}
          />
          <ul class="picks">
            ${repeat(
              others,
              ({ person_id }) => person_id,
              (other) =>
                html`<li>
                  <button @click=${() => void this.#merge(other)}>
                    <sf-face .person=${other}></sf-face>
                    <span>${other.name}<span class="note">${seenIn(other)}</span></span>
                  </button>
                </li>`,
            )}
          </ul>
          ${this.others && !others.length ? html`<p class="note">${t("people.filter_none", { name: this.typed })}</p>` : ""}
        </div>
      </sf-dialog>
      <sf-dialog class="erase" label=${t("person.erase_title", { name: person.name })} @closed=${() => (this.typed = "")}>
        <form class="form" @submit=${this.#erase}>
          <p>${t("person.erase_text")}</p>
          <p class="note">${t("person.erase_left")}</p>
          <label class="labelled">${t("person.erase_type", { name: person.name })}
            <input
              class="field"
              autocomplete="off"
              autofocus
              .value=${this.typed}
              @input=${(/** @type {any} */ event) => (this.typed = event.target.value)}
            />
          </label>
          <button class="button danger erase" ?disabled=${this.typed.trim() !== person.name}>${t("person.erase")}</button>
        </form>
      </sf-dialog>
    `;
  }

  /** @param {Person} person */
  #receipt(person) {
    const receipt = person.receipt ?? {};
    const done = person.state === "erased";
    const rows = (/** @type {Record<string, number> | undefined} */ counts) =>
      Object.entries(counts ?? {}).filter(([, count]) => typeof count === "number" && count > 0);
    const table = (/** @type {string} */ title, /** @type {[string, number][]} */ some) =>
      some.length
        ? html`<table>
            <caption>${title}</caption>
            <tbody>
              ${some.map(([what, count]) => html`<tr><th scope="row">${what}</th><td>${number(count)}</td></tr>`)}
            </tbody>
          </table>`
        : nothing;
    return html`<div class="receipt" role="status" data-erasure=${person.state}>
      <h1>${t(done ? "receipt.done" : "receipt.working")}</h1>
      <p class="note">${t(done ? "receipt.done_text" : "receipt.working_text")}</p>
      ${table(t("receipt.removed"), rows(receipt.removed))} ${table(t("receipt.left"), rows(receipt.left))}
      ${receipt.sweep_due ? html`<p class="note">${t("receipt.sweep", { when: date(receipt.sweep_due, true) })}</p>` : ""}
    </div>`;
  }
}

/** @param {Person} person */
function gone(person) {
  return person.state === "erasing" || person.state === "erased";
}

customElements.define("sf-person", SfPerson);
