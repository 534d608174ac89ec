/**
 * sf-search: the search view: the box, filters, and the moments found, by video.
 *
 * Properties: `route` (see app.js); all criteria are in its query.
 * Events: none; it changes the address.
 *
 * Keys: / goes to the box; arrows walk the hits; Enter plays; Space plays the scene muted in place; m finds more like it;
 * b opens its picture to draw a box.
 */

import { LitElement, css, html, nothing } from "lit";
import { classMap } from "lit/directives/class-map.js";
import { repeat } from "lit/directives/repeat.js";
import { ask, picture, Problem, storePicture } from "../api.js";
import { controls } from "../controls.js";
import { coverage } from "../coverage.js";
import { asks, filters, readCriteria, searchBody, writeCriteria } from "../criteria.js";
import { icon } from "../icons.js";
import { placed } from "../placed.js";
import { navigate } from "../router.js";
import { store, Watch } from "../store.js";
import { t, time, videoName } from "../text.js";
import "./start.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("../criteria.js").Criteria} Criteria */
/** @typedef {import("../types.js").SearchAnswer} SearchAnswer */
/** @typedef {import("../types.js").SearchHit} SearchHit */
/** @typedef {import("./hit.js").SfHit} SfHit */
/** @typedef {import("./crop.js").SfCrop} SfCrop */

const PAUSE_MS = 250;
/** How long old hits stay in sight while new ones are asked for. */
const STALE_MS = 300;
const PAGE = 24;
const COLUMN_PX = 300;
const GAP_PX = 24;
/** What only results need, loaded when the first search begins. */
const loadResults = () => Promise.all([import("./filters.js"), import("./hit.js")]);
const PICTURES = ["image/jpeg", "image/png", "image/webp"];

export class SfSearch extends LitElement {
  static properties = {
    route: { attribute: false },
    answer: { state: true },
    hits: { state: true },
    cursor: { state: true },
    phase: { state: true },
    problem: { state: true },
    columns: { state: true },
    dragging: { state: true },
    typed: { state: true },
    thumbnail: { state: true },
  };

  static styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-direction: column;
        padding: 0 var(--gutter) var(--s12);
      }
      .ask {
        position: sticky;
        z-index: 31;
        top: 0;
        width: min(640px, 100% - 712px);
        height: var(--header);
        margin: calc(-1 * var(--header)) auto 0;
        padding: var(--s2) 0;
      }
      .box {
        display: flex;
        align-items: center;
        height: var(--target);
        border: 1px solid var(--line);
        border-radius: var(--radius);
        background: var(--surface);
        transition: border-color var(--quick);
      }
      .box:hover {
        border-color: var(--line-strong);
      }
      .box:focus-within {
        border-color: var(--focus);
        background: var(--ground);
        box-shadow: 0 0 0 1px var(--focus);
      }
      .box > .icon {
        margin-left: var(--s3);
        color: var(--ink-3);
      }
      input[type="search"] {
        flex: 1;
        min-width: 0;
        height: 100%;
        padding: 0 var(--s2);
        border: 0;
        background: none;
        font-size: var(--text-m);
        appearance: none;
      }
      input[type="search"]:focus-visible {
        outline: none;
      }
      .box .button {
        min-height: 38px;
        width: 38px;
        color: var(--ink-2);
      }
      .like {
        display: inline-flex;
        align-items: center;
        gap: var(--s1);
        margin-left: var(--s1);
        padding-left: var(--s2);
        height: 32px;
        border-radius: 6px;
        background: var(--hover);
        font-size: var(--text-s);
        white-space: nowrap;
      }
      .like img {
        height: 24px;
        width: 36px;
        object-fit: cover;
        border-radius: 3px;
        margin-left: -2px;
      }
      .like .button {
        width: 32px;
        min-height: 32px;
      }
      .home .ask {
        position: relative;
        z-index: 1;
        top: 0;
        width: min(640px, 100%);
        height: auto;
        margin: var(--s4) auto 0;
        padding: 0;
      }
      .home .box {
        height: 56px;
        background: var(--ground);
        border-color: var(--line-strong);
      }
      .home .box > .icon {
        margin-left: var(--s4);
      }
      .home input[type="search"] {
        font-size: var(--text-l);
        padding: 0 var(--s3);
      }
      .home .box .button {
        margin-right: var(--s2);
      }
      .title {
        margin-top: clamp(40px, 13vh, 128px);
        text-align: center;
      }
      .bar {
        display: flex;
        align-items: center;
        gap: var(--s4);
        width: 100%;
        max-width: var(--width);
        margin: 0 auto;
        padding: var(--s3) 0;
      }
      .bar sf-filters {
        min-width: 0;
      }
      .sum {
        margin-left: auto;
        color: var(--ink-2);
        font-size: var(--text-s);
        white-space: nowrap;
      }
      .results {
        width: 100%;
        max-width: var(--width);
        margin: 0 auto;
        transition: opacity var(--quick);
      }
      .results.stale {
        opacity: 0.5;
      }
      .groups {
        display: grid;
        grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
        gap: var(--s8) var(--s6);
        align-items: start;
      }
      .group {
        display: grid;
        grid-template-columns: subgrid;
        gap: var(--s3) var(--s6);
      }
      .group header {
        grid-column: 1 / -1;
        display: flex;
        align-items: baseline;
        gap: var(--s3);
        min-width: 0;
        line-height: 24px;
      }
      .group h2 {
        min-width: 0;
        font-size: var(--text-m);
      }
      .group h2 a {
        display: block;
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
        text-decoration: none;
      }
      .group h2 a:hover {
        text-decoration: underline;
      }
      .group .note {
        white-space: nowrap;
      }
      .hits {
        grid-column: 1 / -1;
        display: grid;
        grid-template-columns: subgrid;
        gap: var(--s6);
      }
      .wait .skeleton {
        aspect-ratio: 16 / 9;
      }
      .wait .line {
        height: 12px;
        margin-top: var(--s3);
        aspect-ratio: auto;
      }
      .wait .line.half {
        width: 55%;
      }
      .end {
        display: grid;
        gap: var(--s1);
        margin-top: var(--s10);
        padding-top: var(--s4);
        border-top: 1px solid var(--line);
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      .end li {
        display: flex;
        gap: var(--s2);
      }
      .end .icon {
        margin-top: 2px;
      }
      .none {
        display: grid;
        gap: var(--s4);
        width: min(600px, 100%);
        margin: clamp(24px, 8vh, 96px) auto 0;
        color: var(--ink-2);
      }
      .none h1 {
        color: var(--ink);
        overflow-wrap: anywhere;
      }
      .none .tries {
        display: grid;
        gap: var(--s2);
        color: var(--ink);
      }
      .none .tries li {
        display: flex;
        gap: var(--s3);
      }
      .none .tries .icon {
        margin-top: 1px;
        color: var(--ink-3);
      }
      .row {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s2);
      }
      .drop {
        position: fixed;
        z-index: 50;
        inset: var(--s3);
        display: grid;
        place-items: center;
        border: 2px dashed var(--focus);
        border-radius: var(--radius);
        background: color-mix(in srgb, var(--ground) 88%, transparent);
        pointer-events: none;
        font-size: var(--text-l);
        font-weight: var(--strong);
      }
      .more {
        height: 1px;
      }
      @media (max-width: 1023px) {
        .ask {
          width: 100%;
          margin: var(--s1) auto 0;
          height: auto;
          top: var(--header);
          z-index: 29;
          background: var(--ground);
        }
      }
      @media (max-width: 719px) {
        .home input[type="search"] {
          font-size: var(--text-m);
        }
        .bar {
          flex-direction: column;
          align-items: stretch;
          gap: var(--s2);
          padding: var(--s1) 0 var(--s3);
        }
        .bar sf-filters {
          margin: 0 calc(-1 * var(--gutter));
        }
        .sum {
          margin: 0;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {import("../app.js").Route} */
    this.route = /** @type {any} */ (undefined);
    /** @type {Criteria} */
    this.criteria = readCriteria(new URLSearchParams());
    /** @type {SearchAnswer | null} The first page of the answer. */
    this.answer = null;
    /** @type {{page: number, hit: SearchHit}[]} */
    this.hits = [];
    /** @type {string | null} */
    this.cursor = null;
    /** @type {"home" | "asking" | "waiting" | "done" | "failed"} */
    this.phase = "home";
    /** @type {string} */
    this.problem = "";
    this.typed = "";
    this.columns = 1;
    this.dragging = false;
    /** @type {string} A picture of what "more like this" was asked for. */
    this.thumbnail = "";
    /** What the shown answer answers. */
    this.asked = "";
    this.pages = 0;
    this.timer = 0;
    this.stale = 0;
    /** Enter was pressed: the first hit gets the focus. */
    this.eager = false;
    this.paging = false;
    /** @type {AbortController | null} */
    this.running = null;
    this.sizes = new ResizeObserver(([entry]) => {
      const width = Math.min(entry.contentRect.width, 1760);
      if (width) this.columns = Math.max(1, Math.floor((width + GAP_PX) / (COLUMN_PX + GAP_PX)));
    });
    this.sight = new IntersectionObserver(([entry]) => entry.isIntersecting && void this.#next(), { rootMargin: "900px" });
    this.away = false;
    this.onStore = () => this.#recover();
    this.onKey = (/** @type {KeyboardEvent} */ event) => this.#globalKey(event);
    this.onPaste = (/** @type {ClipboardEvent} */ event) => this.#paste(event);
    this.onDrag = (/** @type {DragEvent} */ event) => this.#drag(event);
  }

  connectedCallback() {
    super.connectedCallback();
    this.sizes.observe(this);
    store.addEventListener("change", this.onStore);
    addEventListener("keydown", this.onKey);
    addEventListener("paste", this.onPaste);
    for (const name of ["dragover", "dragleave", "drop"]) addEventListener(name, /** @type {any} */ (this.onDrag));
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.sizes.disconnect();
    store.removeEventListener("change", this.onStore);
    removeEventListener("keydown", this.onKey);
    removeEventListener("paste", this.onPaste);
    for (const name of ["dragover", "dragleave", "drop"]) removeEventListener(name, /** @type {any} */ (this.onDrag));
  }

  get input() {
    return /** @type {HTMLInputElement} */ (this.renderRoot.querySelector("input[type=search]"));
  }

  get found() {
    return /** @type {SfHit[]} */ ([...this.renderRoot.querySelectorAll("sf-hit")]);
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    if (!changed.has("route") || !this.route) return;
    clearTimeout(this.timer);
    this.criteria = readCriteria(this.route.query);
    const { q, like } = this.criteria;
    if (this.typed.trim() !== q) this.typed = q;
    if (!like) this.thumbnail = "";
    else if (typeof this.route.state.thumbnail === "string") this.thumbnail = this.route.state.thumbnail;
    document.title = q ? t("search.title.of", { query: q }) : t("search.title");
    const wanted = writeCriteria(this.criteria);
    if (wanted !== this.asked || this.phase === "failed") void this.#search(wanted);
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    if (changed.has("columns")) this.style.setProperty("--columns", String(this.columns));
    const first = changed.has("route") && !changed.get("route");
    if (first || (changed.has("route") && this.phase === "home")) this.#greet();
    const mark = this.renderRoot.querySelector(".more");
    this.sight.disconnect();
    if (mark) this.sight.observe(mark);
    if (this.eager && this.phase === "done") {
      this.eager = false;
      this.found[0]?.focus();
    }
  }

  /** Put the focus into the box, where that does not open a keyboard over the page. */
  #greet() {
    if (!this.route.back && matchMedia("(hover: hover)").matches) this.input.focus({ preventScroll: true });
  }

  /** @param {string} wanted */
  async #search(wanted) {
    this.running?.abort();
    clearTimeout(this.stale);
    this.asked = wanted;
    this.problem = "";
    if (!asks(this.criteria)) {
      this.phase = "home";
      this.answer = null;
      this.hits = [];
      this.cursor = null;
      return;
    }
    const running = (this.running = new AbortController());
    this.phase = this.hits.length ? "asking" : "waiting";
    this.stale = setTimeout(() => (this.phase = "waiting"), STALE_MS);
    try {
      const [answer] = await Promise.all([this.#ask(null, running.signal), loadResults()]);
      if (running.signal.aborted) return;
      this.answer = answer;
      this.pages = 1;
      this.hits = answer.hits.map((hit) => ({ page: 0, hit }));
      this.cursor = answer.next_cursor;
      this.phase = "done";
      this.#meet(answer.hits);
    } catch (error) {
      if (running.signal.aborted) return;
      this.phase = "failed";
      this.problem = error instanceof Problem && !error.passing ? error.message : t("problem.passing");
      this.hits = [];
      this.answer = null;
      this.cursor = null;
    } finally {
      if (this.running === running) clearTimeout(this.stale);
    }
  }

  /** Search again after what was away has come back. */
  #recover() {
    const back = this.away && !store.away;
    this.away = store.away !== null;
    if (back && this.phase === "failed") void this.#search(this.asked);
  }

  /**
   * @param {string | null} cursor
   * @param {AbortSignal} signal
   * @returns {Promise<SearchAnswer>}
   */
  #ask(cursor, signal) {
    return ask("/search", { body: searchBody(this.criteria, PAGE, cursor), signal, retry: true });
  }

  async #next() {
    const { cursor, running } = this;
    if (!cursor || this.paging || this.phase !== "done" || !running || this.hidden) return;
    this.paging = true;
    try {
      const answer = await this.#ask(cursor, running.signal);
      if (running.signal.aborted) return;
      const page = this.pages++;
      const shown = new Set(this.hits.map(({ hit }) => hit.scene_id));
      const fresh = answer.hits.filter((hit) => !shown.has(hit.scene_id));
      this.hits = [...this.hits, ...fresh.map((hit) => ({ page, hit }))];
      this.cursor = answer.next_cursor;
      if (this.answer) this.answer = { ...this.answer, truncated: answer.truncated };
      this.#meet(fresh);
    } catch (error) {
      if (!running.signal.aborted) toastError(error);
    } finally {
      this.paging = false;
    }
  }

  /**
   * Learn the names of the hits' videos.
   * @param {SearchHit[]} hits
   */
  #meet(hits) {
    for (const id of new Set(hits.map((hit) => hit.video_id))) void store.video(id);
  }

  /**
   * Search for something else: a new entry of the history unless `replace`.
   * @param {Partial<Criteria>} change
   * @param {{replace?: boolean, thumbnail?: string}} [options]
   */
  #change(change, { replace = false, thumbnail } = {}) {
    const path = writeCriteria({ ...this.criteria, q: this.typed, ...change });
    if (path !== location.pathname + location.search) navigate(path, { replace, state: thumbnail ? { thumbnail } : {} });
  }

  /**
   * Go on where a box of the document was, which stood in this one's place before the scripts came.
   * @param {HTMLInputElement} box
   * @param {boolean} focused
   * @param {boolean} entered whether Enter was pressed in it
   */
  resume(box, focused, entered) {
    if (focused) this.input.focus({ preventScroll: true });
    if (!box.value) return;
    this.input.value = box.value;
    if (focused) this.input.setSelectionRange(box.selectionStart, box.selectionEnd);
    this.#typed(box.value);
    if (entered) this.#enter();
  }

  /** @param {Event} event */
  #type(event) {
    this.#typed(/** @type {HTMLInputElement} */ (event.currentTarget).value);
  }

  /** @param {string} text */
  #typed(text) {
    this.typed = text;
    this.eager = false;
    loadResults().catch(() => {}); // the search says it
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#change({}, { replace: true }), PAUSE_MS);
  }

  /** @param {SubmitEvent} event */
  #submit(event) {
    event.preventDefault();
    this.#enter();
  }

  #enter() {
    clearTimeout(this.timer);
    this.typed = this.input.value;
    this.eager = true;
    this.#change({}, { replace: !this.criteria.q });
    if (this.phase === "failed") void this.#search(this.asked);
    this.requestUpdate();
  }

  #clear() {
    this.typed = "";
    this.input.value = "";
    clearTimeout(this.timer);
    this.#change({ q: "", like: "", image: "" });
    this.input.focus();
  }

  // Keys.

  /** @param {KeyboardEvent} event */
  #globalKey(event) {
    if (this.hidden || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.composedPath()[0];
    const typing = target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
    if (event.key === "/" && !typing) {
      event.preventDefault();
      this.input.focus();
      this.input.select();
    }
  }

  /** @param {KeyboardEvent} event */
  #boxKey(event) {
    if (event.key === "ArrowDown" && this.found.length) {
      event.preventDefault();
      this.found[0].focus();
    } else if (event.key === "Escape" && this.typed) {
      event.preventDefault();
      this.#clear();
    }
  }

  /** @param {KeyboardEvent} event */
  #hitKey(event) {
    const hit = event.composedPath().find((node) => node instanceof HTMLElement && node.localName === "sf-hit");
    if (!hit || event.ctrlKey || event.metaKey || event.altKey) return;
    const from = /** @type {SfHit} */ (hit);
    const button = event.composedPath()[0] instanceof HTMLButtonElement;
    if (event.key === " " && !button) from.peek();
    else if (event.key === "m") this.#similar(from.hit);
    else if (event.key === "b") void this.#crop(from.renderRoot.querySelector("img"));
    else if (event.key.startsWith("Arrow")) this.#walk(from, event.key);
    else return;
    event.preventDefault();
  }

  /**
   * @param {SfHit} from
   * @param {string} key
   */
  #walk(from, key) {
    const found = this.found;
    const at = found.indexOf(from);
    if (key === "ArrowRight") found[at + 1]?.focus();
    else if (key === "ArrowLeft") found[at - 1]?.focus();
    else {
      const here = from.getBoundingClientRect();
      const down = key === "ArrowDown";
      const places = found
        .map((hit) => ({ hit, rect: hit.getBoundingClientRect() }))
        .filter(({ rect }) => (down ? rect.top > here.top + 8 : rect.top < here.top - 8));
      const row = Math[down ? "min" : "max"](...places.map(({ rect }) => rect.top));
      const near = places
        .filter(({ rect }) => Math.abs(rect.top - row) < 8)
        .sort((a, b) => Math.abs(a.rect.left - here.left) - Math.abs(b.rect.left - here.left))[0];
      if (near) near.hit.focus();
      else if (!down) this.input.focus();
    }
  }

  // Pictures.

  /** @param {SearchHit} hit */
  #similar(hit) {
    this.typed = "";
    scrollTo(0, 0);
    this.#change({ q: "", like: hit.scene_id, image: "" }, { thumbnail: hit.keyframe_keys[0] ?? "" });
  }

  /** @param {HTMLImageElement | null} image */
  async #crop(image) {
    if (!image?.complete || !image.naturalWidth) return;
    await import("./crop.js");
    await /** @type {SfCrop} */ (this.renderRoot.querySelector("sf-crop")).open(image);
  }

  /** @param {Blob} blob */
  async #byPicture(blob) {
    if (!PICTURES.includes(blob.type)) {
      toast(t(blob.type.startsWith("video/") ? "search.picture.video" : "search.picture.type"), { kind: "bad" });
      return;
    }
    const done = toast(t("search.picture.sending"), { seconds: 0 });
    try {
      const image = await storePicture(blob);
      this.typed = "";
      scrollTo(0, 0);
      this.#change({ q: "", image, like: "" });
    } catch (error) {
      toastError(error);
    } finally {
      done();
    }
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    if (this.hidden) return;
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    void this.#byPicture(file);
  }

  /** @param {DragEvent} event */
  #drag(event) {
    if (this.hidden || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    this.dragging = event.type === "dragover";
    const file = event.dataTransfer.files[0];
    if (event.type === "drop" && file) void this.#byPicture(file);
  }

  /** @param {Event} event */
  #pick(event) {
    const input = /** @type {HTMLInputElement} */ (event.currentTarget);
    if (input.files?.[0]) void this.#byPicture(input.files[0]);
    input.value = "";
  }

  // What is shown.

  render() {
    const home = this.phase === "home";
    return html`<div class=${home ? "home" : ""}>
        ${home ? html`<h1 class="title">${t("search.heading")}</h1>` : html`<h1 class="only-read">${t("search.results")}</h1>`}
        ${this.#box()}
      </div>
      ${home
        ? html`<sf-start @sf-ask=${this.#example}></sf-start>`
        : html`
            <div class="bar">
              <sf-filters .criteria=${this.criteria} @sf-change=${this.#filter}></sf-filters>
              <p class="sum" role="status">${this.#sum()}</p>
            </div>
            <section class=${classMap({ results: true, stale: this.phase === "asking" })} aria-busy=${this.phase !== "done"}>
              ${this.#results()}
            </section>
          `}
      ${this.dragging ? html`<div class="drop">${t("search.picture.drop")}</div>` : ""}
      <sf-crop @sf-picture=${(/** @type {CustomEvent} */ event) => this.#byPicture(event.detail.blob)}></sf-crop>`;
  }

  #box() {
    const { image, like } = this.criteria;
    const key = image || this.thumbnail;
    return html`<form class="ask" role="search" action="/" @submit=${this.#submit}>
      <div class="box">
        ${icon("search")}
        ${image || like
          ? html`<span class="like">
              ${key ? html`<img src=${picture(key)} alt="" />` : icon("similar", true)}
              ${t(image ? "search.by.picture" : "search.by.scene")}
              <button
                type="button"
                class="button quiet icon-only"
                aria-label=${t("search.by.remove")}
                @click=${() => this.#change({ image: "", like: "" })}
              >
                ${icon("close", true)}
              </button>
            </span>`
          : ""}
        <input
          type="search"
          name="q"
          enterkeyhint="search"
          autocomplete="off"
          autocapitalize="off"
          spellcheck="false"
          maxlength="1000"
          aria-label=${t("search.box")}
          placeholder=${image || like ? "" : t("search.placeholder")}
          .value=${this.typed}
          @input=${this.#type}
          @keydown=${this.#boxKey}
        />
        ${this.typed
          ? html`<button type="button" class="button quiet icon-only" aria-label=${t("search.clear")} @click=${this.#clear}>
              ${icon("close")}
            </button>`
          : ""}
        <button
          type="button"
          class="button quiet icon-only"
          title=${t("search.picture")}
          aria-label=${t("search.picture")}
          @click=${() => /** @type {HTMLInputElement} */ (this.renderRoot.querySelector("input[type=file]")).click()}
        >
          ${icon("photo")}
        </button>
        <input type="file" accept=${PICTURES.join(",")} hidden @change=${this.#pick} />
      </div>
    </form>`;
  }

  /** @param {CustomEvent<{query: string}>} event */
  #example(event) {
    this.typed = event.detail.query;
    this.eager = true;
    this.#change({ q: event.detail.query });
  }

  /** @param {CustomEvent<Partial<Criteria>>} event */
  #filter(event) {
    this.#change(event.detail);
  }

  #sum() {
    if (this.phase === "waiting" || this.phase === "asking") return t("search.looking");
    if (this.phase !== "done" || !this.hits.length) return nothing;
    const moments = this.hits.length;
    const videos = new Set(this.hits.map(({ hit }) => hit.video_id)).size;
    const count = t("search.moments", { n: moments });
    return this.cursor
      ? t("search.sum.more", { n: moments })
      : t("search.sum", { moments: count, videos: t("search.videos", { n: videos }) });
  }

  #results() {
    if (this.phase === "waiting") return this.#skeleton();
    if (this.phase === "failed") return this.#failed();
    if (!this.hits.length) return this.phase === "done" && this.answer ? this.#nothing(this.answer) : this.#skeleton();
    return html`<div class="groups" @keydown=${this.#hitKey} @sf-similar=${(/** @type {CustomEvent} */ event) =>
        this.#similar(event.detail.hit)} @sf-crop=${(/** @type {CustomEvent} */ event) => this.#crop(event.detail.image)}>
        ${repeat(this.#groups(), (group) => `${group.page}:${group.id}`, (group) => this.#group(group))}
      </div>
      ${this.cursor ? html`<div class="more"></div>` : ""} ${this.answer ? this.#end(this.answer) : ""}`;
  }

  /** Hits by video, in the order of each video's best; a later page never changes what stands. */
  #groups() {
    /** @type {Map<string, {id: string, page: number, again: boolean, hits: SearchHit[]}>} */
    const groups = new Map();
    const seen = new Set();
    for (const { page, hit } of this.hits) {
      const key = `${page}:${hit.video_id}`;
      let group = groups.get(key);
      if (!group) {
        group = { id: hit.video_id, page, again: seen.has(hit.video_id), hits: [] };
        groups.set(key, group);
        seen.add(hit.video_id);
      }
      group.hits.push(hit);
    }
    return [...groups.values()];
  }

  /** @param {{id: string, again: boolean, hits: SearchHit[]}} group */
  #group({ id, again, hits }) {
    const video = store.videos.get(id);
    const name = video ? videoName(video) : id;
    const q = this.criteria.q ? `?q=${encodeURIComponent(this.criteria.q)}` : "";
    const length = video?.duration_s ? ` · ${time(video.duration_s)}` : "";
    const count = t(again ? "search.moments.again" : "search.moments", { n: hits.length });
    return html`<article
      class="group"
      aria-label=${name}
      ${placed({ "grid-column": `span ${Math.min(hits.length, this.columns)}` })}
    >
      <header>
        <h2><a href="/v/${id}${q}" title=${name}>${name}</a></h2>
        <span class="note time">${count}${length}</span>
      </header>
      <div class="hits">
        ${repeat(
          hits,
          (hit) => hit.scene_id,
          (hit) => html`<sf-hit .hit=${hit} .href=${this.#address(hit)}></sf-hit>`,
        )}
      </div>
    </article>`;
  }

  /** @param {SearchHit} hit */
  #address(hit) {
    const query = new URLSearchParams({ t: String(Math.round(hit.start_s * 1000) / 1000) });
    if (this.criteria.q) query.set("q", this.criteria.q);
    return `/v/${hit.video_id}?${query}`;
  }

  /** @param {SearchAnswer} answer */
  #end(answer) {
    const { looked, missing } = coverage(answer, this.criteria);
    return html`<ul class="end" aria-label=${t("coverage.label")}>
      <li>${icon("check", true)} ${looked}</li>
      ${missing.map((line) => html`<li>${icon("help", true)} ${line}</li>`)}
    </ul>`;
  }

  /** @param {SearchAnswer} answer */
  #nothing(answer) {
    const { looked, missing } = coverage(answer, this.criteria);
    const { q } = this.criteria;
    return html`<div class="none">
      <h1>${q ? t("search.none.of", { query: q }) : t("search.none")}</h1>
      <div>
        <p>${looked}</p>
        ${missing.map((line) => html`<p>${line}</p>`)}
      </div>
      <h3>${t("search.try")}</h3>
      <ul class="tries">
        <li>${icon("speech")} ${t("search.try.words")}</li>
        <li>${icon("filter")} ${t(filters(this.criteria) ? "search.try.filters" : "search.try.general")}</li>
        <li>${icon("photo")} ${t("search.try.picture")}</li>
      </ul>
      <div class="row">
        ${filters(this.criteria) ? html`<button class="button" @click=${this.#unfilter}>${t("filter.clear")}</button>` : ""}
        <a class="button" href="/library">${t("search.library")}</a>
      </div>
    </div>`;
  }

  #unfilter() {
    this.#change({ people: [], videos: [], languages: [], from: null, to: null, since: "", until: "" });
  }

  #failed() {
    return html`<div class="none" role="alert">
      <h1>${t("search.failed")}</h1>
      <p>${this.problem}</p>
      <div class="row">
        <button class="button solid" @click=${() => void this.#search(this.asked)}>${icon("retry")} ${t("action.retry")}</button>
      </div>
    </div>`;
  }

  #skeleton() {
    const cells = Array.from({ length: Math.max(4, this.columns * 2) });
    return html`<div class="groups wait" aria-hidden="true">
      ${cells.map(
        () =>
          html`<div>
            <div class="skeleton"></div>
            <div class="skeleton line"></div>
            <div class="skeleton line half"></div>
          </div>`,
      )}
    </div>`;
  }
}

customElements.define("sf-search", SfSearch);
