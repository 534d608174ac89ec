/**
 * sf-library: all videos of the user with their state, live; files dropped anywhere are uploaded.
 *
 * Properties: `route`; its query: `state` (one of FILTERS), `view` ("grid").
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask } from "../api.js";
import { controls } from "../controls.js";
import { deletions } from "../deletions.js";
import { icon } from "../icons.js";
import { navigate } from "../router.js";
import { store, Watch } from "../store.js";
import { ago, bytes, date, known, t, videoName } from "../text.js";
import { droppedFiles, isVideo, uploads, WatchUploads } from "../uploads.js";
import "./dialog.js";
import "./acts.js";
import "./progress.js";
import "./thumb.js";
import "./upload.js";
import { inWork, stageName } from "./progress.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("../types.js").VideoStatus} VideoStatus */
/** @typedef {import("../types.js").StageStatus} StageStatus */

const PAGE = 50;
/** A short video that a checkout has. */
const SAMPLE = "/sample.mp4";

/** What the filter offers, with the states that each means. @type {Record<string, string[]>} */
const FILTERS = {
  all: [],
  work: ["uploaded", "processing"],
  indexed: ["indexed"],
  partial: ["partial"],
  failed: ["failed"],
  cancelled: ["cancelled"],
};

export class SfLibrary extends LitElement {
  static properties = {
    route: { attribute: false },
    next: { state: true },
    problem: { state: true },
    loaded: { state: true },
    over: { state: true },
    again: { state: true },
    sample: { state: true },
    fetching: { state: true },
  };

  static styles = [
    controls,
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
        gap: var(--s2);
        margin-bottom: var(--s4);
      }
      .head h1 {
        margin-right: auto;
      }
      .tools {
        display: flex;
        align-items: center;
        gap: var(--s2);
        margin-bottom: var(--s4);
      }
      .filters {
        display: flex;
        gap: var(--s2);
        overflow-x: auto;
        scrollbar-width: none;
        padding: 3px;
        margin: -3px auto -3px -3px;
      }
      .filters a {
        text-decoration: none;
      }
      .filters a[aria-current] {
        border-color: var(--solid);
        color: var(--ink);
        font-weight: var(--strong);
      }
      sf-upload {
        margin-bottom: var(--s6);
      }

      .list li {
        display: grid;
        grid-template-columns: 152px minmax(0, 1fr) minmax(240px, 320px) 40px;
        align-items: center;
        gap: var(--s2) var(--s5);
        padding: var(--s3) 0;
        border-top: 1px solid var(--line);
        content-visibility: auto;
        contain-intrinsic-size: auto 110px;
      }
      .what {
        min-width: 0;
      }
      .name {
        display: block;
        font-weight: var(--strong);
        text-decoration: none;
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      a.name:hover {
        text-decoration: underline;
      }
      .meta {
        color: var(--ink-2);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .faults {
        grid-column: 2 / -1;
        display: flex;
        align-items: center;
        gap: var(--s3) var(--s6);
        padding: var(--s3) var(--s3) var(--s3) var(--s4);
        border-radius: var(--radius);
        background: var(--surface);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .faults dl {
        flex: 1;
        min-width: 0;
      }
      .faults dt {
        font-weight: var(--strong);
      }
      .faults dt:not(:first-child) {
        margin-top: var(--s2);
      }
      .faults dd {
        max-width: 80ch;
        color: var(--ink-2);
        overflow-wrap: anywhere;
      }

      .grid {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr));
        gap: var(--s8) var(--s5);
      }
      .grid li {
        display: grid;
        grid-template-columns: minmax(0, 1fr) 40px;
        align-content: start;
        gap: var(--s2);
      }
      .grid sf-thumb,
      .grid .picture,
      .grid sf-progress {
        grid-column: 1 / -1;
      }
      .grid .picture {
        order: -2;
      }
      .grid .what,
      .grid sf-acts {
        order: -1;
      }
      .grid .faults {
        grid-column: 1 / -1;
        display: grid;
        padding: var(--s3);
      }

      .zone {
        flex: 1;
        display: grid;
        place-content: center;
        justify-items: center;
        gap: var(--s3);
        min-height: min(480px, 60vh);
        padding: var(--s8) var(--s6);
        border: 2px dashed var(--line-strong);
        border-radius: 16px;
        background: var(--surface);
        text-align: center;
        color: var(--ink-2);
      }
      .zone > .icon {
        width: 48px;
        height: 48px;
        stroke-width: 1.25;
        color: var(--ink-3);
      }
      .zone h1,
      .zone h2 {
        font-size: var(--text-xl);
        line-height: 32px;
        color: var(--ink);
      }
      .zone p {
        max-width: 52ch;
      }
      .zone .acts {
        display: flex;
        flex-wrap: wrap;
        justify-content: center;
        gap: var(--s2);
        margin-top: var(--s2);
      }
      .over {
        position: fixed;
        z-index: 50;
        inset: var(--s3);
        display: grid;
        place-content: center;
        justify-items: center;
        gap: var(--s3);
        border: 2px dashed var(--ink);
        border-radius: 16px;
        background: color-mix(in srgb, var(--ground) 88%, transparent);
        font-size: var(--text-xl);
        font-weight: var(--strong);
        pointer-events: none;
      }
      .over .icon {
        width: 48px;
        height: 48px;
        stroke-width: 1.25;
      }
      .none {
        display: grid;
        justify-items: start;
        gap: var(--s3);
        padding: var(--s12) 0;
        color: var(--ink-2);
      }
      .ghost {
        height: 86px;
        margin-top: var(--s3);
      }
      fieldset {
        display: grid;
        gap: var(--s1);
        margin: 0;
        padding: 0;
        border: 0;
      }
      legend {
        padding: 0 0 var(--s2);
      }
      .choice {
        display: flex;
        align-items: center;
        gap: var(--s3);
        min-height: var(--target);
        cursor: pointer;
      }
      .choice input {
        width: 18px;
        height: 18px;
        margin: 0;
        flex: none;
        accent-color: var(--solid);
      }
      .inner {
        padding-left: 30px;
        display: grid;
        grid-template-columns: 1fr 1fr;
      }
      form .acts {
        display: flex;
        justify-content: flex-end;
        gap: var(--s2);
        margin-top: var(--s5);
      }
      @media (max-width: 859px) {
        .list li {
          grid-template-columns: 112px minmax(0, 1fr) 40px;
          gap: var(--s2) var(--s3);
          align-items: start;
        }
        .list .name {
          white-space: normal;
          display: -webkit-box;
          -webkit-line-clamp: 2;
          -webkit-box-orient: vertical;
          line-height: 20px;
        }
        .list sf-acts {
          grid-area: 1 / 3;
          margin-top: -8px;
        }
        .list sf-progress,
        .list .faults {
          grid-column: 1 / -1;
        }
        .faults {
          display: grid;
        }
        .folder {
          display: none;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    new WatchUploads(this);
    /** @type {import("../app.js").Route | null} */
    this.route = null;
    /** The videos as the list told of them; the store knows better. @type {Map<string, VideoStatus>} */
    this.known = new Map();
    /** @type {Map<string, VideoStatus> | null} */
    this.snapshot = null;
    /** @type {Set<string>} */
    this.seen = new Set();
    /** @type {string | null} */
    this.next = null;
    /** The creation of the last video of the pages so far. */
    this.until = "";
    this.loaded = false;
    /** @type {Error | null} */
    this.problem = null;
    this.filter = "";
    this.over = false;
    /** Size of the server's sample, bytes; 0: it has none; null: not asked yet. @type {number | null} */
    this.sample = null;
    this.fetching = false;
    /** The video that is to be processed again. @type {VideoStatus | null} */
    this.again = null;
    this.turn = 0;
    this.depth = 0;
    this.onDeletion = () => this.requestUpdate();
    /** @type {IntersectionObserver | null} */
    this.end = null;
    this.drag = {
      dragenter: (/** @type {DragEvent} */ event) => this.#drag(event, 1),
      dragleave: (/** @type {DragEvent} */ event) => this.#drag(event, -1),
      dragover: (/** @type {DragEvent} */ event) => this.#drag(event, 0),
      drop: (/** @type {DragEvent} */ event) => void this.#drop(event),
    };
  }

  connectedCallback() {
    super.connectedCallback();
    deletions.addEventListener("change", this.onDeletion);
    for (const [name, act] of Object.entries(this.drag)) addEventListener(name, /** @type {any} */ (act));
    this.clock = setInterval(() => this.requestUpdate(), 30_000);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    deletions.removeEventListener("change", this.onDeletion);
    for (const [name, act] of Object.entries(this.drag)) removeEventListener(name, /** @type {any} */ (act));
    clearInterval(this.clock);
    this.end?.disconnect();
    this.end = null;
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    super.willUpdate(changed);
    if (changed.has("route") && this.route) {
      document.title = t("library.document");
      const filter = this.route.query.get("state") ?? "all";
      const found = filter in FILTERS ? filter : "all";
      if (found !== this.filter) {
        this.filter = found;
        this.known = new Map();
        this.loaded = false;
        void this.#load(false);
      }
    }
    this.#follow();
  }

  /** Take over what the store tells: changes, new videos, deleted ones. */
  #follow() {
    if (store.videos !== this.snapshot) {
      // A stream that was broken may have missed deletions.
      if (this.snapshot && this.loaded) void this.#load(false);
      this.snapshot = store.videos;
      this.seen = new Set();
    }
    for (const id of this.seen) {
      if (store.videos.has(id)) continue;
      this.seen.delete(id);
      this.known.delete(id);
    }
    for (const [id, video] of store.videos) {
      this.seen.add(id);
      this.known.set(id, video);
    }
  }

  /** @param {boolean} more the next page instead of the first */
  async #load(more) {
    const turn = ++this.turn;
    this.problem = null;
    try {
      /** @type {{videos: VideoStatus[], next_after: string | null}} */
      const page = await ask("/videos", {
        query: { state: FILTERS[this.filter], after: more ? this.next : null, limit: PAGE },
      });
      if (turn !== this.turn) return;
      if (!more) this.known = new Map();
      for (const video of page.videos) this.known.set(video.video_id, video);
      this.next = page.next_after;
      this.until = page.next_after ? (page.videos.at(-1)?.created_at ?? "") : "";
      this.loaded = true;
    } catch (error) {
      if (turn !== this.turn) return;
      this.problem = /** @type {Error} */ (error);
    }
  }

  /** @returns {VideoStatus[]} the newest first */
  get #videos() {
    const states = FILTERS[this.filter];
    return [...this.known.values()]
      .filter(
        (video) =>
          video.state !== "deleted" &&
          (!states.length || states.includes(video.state)) &&
          video.created_at >= this.until &&
          !deletions.has(video.video_id),
      )
      .sort((a, b) => b.created_at.localeCompare(a.created_at) || a.video_id.localeCompare(b.video_id));
  }

  updated() {
    const end = this.renderRoot.querySelector(".end");
    this.end ??= new IntersectionObserver(
      (entries) => {
        if (entries.some((entry) => entry.isIntersecting) && this.next && !this.problem) void this.#load(true);
      },
      { rootMargin: "800px" },
    );
    this.end.disconnect();
    if (end) this.end.observe(end);
  }

  /**
   * @param {DragEvent} event
   * @param {number} step
   */
  #drag(event, step) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    this.depth = Math.max(0, this.depth + step);
    this.over = this.depth > 0;
  }

  /** @param {DragEvent} event */
  async #drop(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    this.depth = 0;
    this.over = false;
    this.#upload(await droppedFiles(event.dataTransfer));
  }

  /** @param {File[]} files */
  #upload(files) {
    if (files.length) uploads.add(files);
    else toast(t("upload.nothing"), { kind: "bad" });
  }

  /** Ask once whether the server has the sample. */
  async #lookForSample() {
    this.sample = 0;
    const answer = await fetch(SAMPLE, { method: "HEAD" }).catch(() => null);
    if (answer?.ok) this.sample = Number(answer.headers.get("Content-Length"));
  }

  /** The sample takes the same way as a file of the user's. */
  async #addSample() {
    this.fetching = true;
    try {
      const answer = await fetch(SAMPLE);
      if (!answer.ok) throw new Error(t("library.sample_failed"));
      uploads.add([new File([await answer.blob()], "sample.mp4", { type: "video/mp4", lastModified: 0 })]);
    } catch {
      toast(t("library.sample_failed"), { kind: "bad" });
    }
    this.fetching = false;
  }

  /** @param {"file" | "folder"} what */
  #choose(what) {
    /** @type {HTMLInputElement | null} */ (this.renderRoot.querySelector(`input[name=${what}]`))?.click();
  }

  /** @param {Event} event */
  #chosen(event) {
    const input = /** @type {HTMLInputElement} */ (event.currentTarget);
    const files = [...(input.files ?? [])];
    this.#upload(input.name === "folder" ? files.filter(isVideo) : files);
    input.value = "";
  }

  /**
   * Ask for a change of a video.
   * @param {VideoStatus} video
   * @param {"retry" | "cancel" | "rerun"} act
   * @param {unknown} [body]
   */
  async #act(video, act, body) {
    try {
      await ask(`/videos/${video.video_id}/${act}`, { method: "POST", body });
      const status = /** @type {VideoStatus} */ (await ask(`/videos/${video.video_id}`));
      store.put(status);
    } catch (error) {
      toastError(error);
    }
  }

  /** @param {VideoStatus} video */
  #askAgain(video) {
    this.again = video;
    void this.updateComplete.then(() => /** @type {any} */ (this.renderRoot.querySelector("sf-dialog")).show());
  }

  /** @param {SubmitEvent} event */
  #runAgain(event) {
    event.preventDefault();
    const chosen = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    const which = chosen.get("which");
    const stages = which === "some" ? chosen.getAll("stage") : [];
    /** @type {any} */ (this.renderRoot.querySelector("sf-dialog")).close();
    if (this.again) void this.#act(this.again, "rerun", { stages, missing: which === "missing" });
  }

  /** @param {Record<string, string | null>} change of the query */
  #href(change) {
    const query = new URLSearchParams(this.route?.query);
    for (const [name, value] of Object.entries(change)) {
      if (value === null) query.delete(name);
      else query.set(name, value);
    }
    return query.size ? `/library?${query}` : "/library";
  }

  render() {
    const videos = this.#videos;
    const empty = this.loaded && !videos.length;
    const grid = this.route?.query.get("view") === "grid";
    const inputs = html`
      <input type="file" name="file" multiple accept="video/*,.mkv,.mxf,.ts,.m2ts,.avi" hidden @change=${this.#chosen} aria-label=${t("library.add")} />
      <input type="file" name="folder" webkitdirectory hidden @change=${this.#chosen} aria-label=${t("library.add_folder")} />
    `;
    const over = this.over ? html`<div class="over" role="status">${icon("upload")} ${t("library.drop")}</div>` : "";
    if (empty && this.filter === "all" && !uploads.lines.length) {
      return html`${inputs} ${this.#zone()} ${over}`;
    }
    return html`
      ${inputs}
      <div class="head">
        <h1>${t("app.library")}</h1>
        <button class="button folder" @click=${() => this.#choose("folder")}>${t("library.add_folder")}</button>
        <button class="button solid" @click=${() => this.#choose("file")}>${icon("add", true)} ${t("library.add")}</button>
      </div>
      <sf-upload @choose=${() => this.#choose("file")} ?hidden=${!uploads.lines.length}></sf-upload>
      <div class="tools">
        <nav class="filters" aria-label=${t("library.filter")}>
          ${Object.keys(FILTERS).map(
            (filter) =>
              html`<a
                class="chip"
                href=${this.#href({ state: filter === "all" ? null : filter })}
                aria-current=${this.filter === filter ? "true" : nothing}
                >${t(/** @type {any} */ (`library.filter.${filter}`))}</a
              >`,
          )}
        </nav>
        <button
          class="button quiet icon-only"
          aria-label=${t(grid ? "library.as_list" : "library.as_grid")}
          title=${t(grid ? "library.as_list" : "library.as_grid")}
          @click=${() => navigate(this.#href({ view: grid ? null : "grid" }), { replace: true })}
        >
          ${icon(grid ? "list" : "grid")}
        </button>
      </div>
      ${this.problem && !this.loaded
        ? html`<div class="none" role="alert">
            <p>${this.problem.message}</p>
            <button class="button" @click=${() => void this.#load(false)}>${t("action.retry")}</button>
          </div>`
        : !this.loaded
          ? html`<div aria-busy="true" aria-label=${t("library.loading")}>
              ${[1, 2, 3, 4].map(() => html`<div class="ghost skeleton"></div>`)}
            </div>`
          : empty
            ? html`<div class="none">
                ${this.filter === "all"
                  ? html`<p>${t("library.soon")}</p>`
                  : html`<p>${t(/** @type {any} */ (`library.none.${this.filter}`))}</p>
                      <a class="button" href=${this.#href({ state: null })}>${t("library.show_all")}</a>`}
              </div>`
            : html`<ul class=${grid ? "grid" : "list"}>
                ${repeat(
                  videos,
                  (video) => video.video_id,
                  (video) => this.#row(video),
                )}
              </ul>`}
      ${this.next ? html`<div class="end skeleton ghost"></div>` : ""}
      ${this.problem && this.loaded
        ? html`<p class="problem" role="alert">
            ${this.problem.message} <button class="button" @click=${() => void this.#load(true)}>${t("action.retry")}</button>
          </p>`
        : ""}
      <sf-dialog label=${t("rerun.title", { name: this.again ? videoName(this.again) : "" })} @closed=${() => (this.again = null)}>
        ${this.again ? this.#form(this.again) : ""}
      </sf-dialog>
      ${over}
    `;
  }

  #zone() {
    if (this.sample === null) void this.#lookForSample();
    const most = store.me?.max_video_bytes;
    return html`<div class="zone">
      ${icon("upload")}
      <h1>${t("library.empty.title")}</h1>
      <p>${t("library.empty.text")}</p>
      <div class="acts">
        <button class="button solid" @click=${() => this.#choose("file")}>${t("library.choose")}</button>
        <button class="button folder" @click=${() => this.#choose("folder")}>${t("library.choose_folder")}</button>
      </div>
      ${this.sample
        ? html`<button class="button quiet" ?disabled=${this.fetching} @click=${this.#addSample}>
            ${icon("play", true)} ${t("library.sample", { size: bytes(this.sample) })}
          </button>`
        : ""}
      ${most ? html`<p class="note">${t("library.empty.limit", { most: bytes(most) })}</p>` : ""}
    </div>`;
  }

  /** @param {VideoStatus} video */
  #row(video) {
    const name = videoName(video);
    const shown = video.published_run !== null;
    const meta = [
      shown ? t("library.scenes", { n: video.scenes }) : "",
      t("library.added", { ago: ago(video.created_at) }),
    ].filter(Boolean);
    const href = `/v/${video.video_id}`;
    return html`<li data-video=${video.video_id}>
      ${shown
        ? html`<a class="picture" href=${href} tabindex="-1" aria-hidden="true"><sf-thumb .video=${video}></sf-thumb></a>`
        : html`<sf-thumb class="picture" .video=${video}></sf-thumb>`}
      <div class="what">
        ${shown
          ? html`<a class="name" href=${href} title=${name}>${name}</a>`
          : html`<span class="name" title=${name}>${name}</span>`}
        <p class="meta"><span title=${date(video.created_at, true)}>${meta.join(" · ")}</span></p>
      </div>
      <sf-progress .video=${video}></sf-progress>
      <sf-acts .label=${t("library.more", { name })} .items=${this.#acts(video, name)}></sf-acts>
      ${video.state === "failed" || video.state === "partial" ? this.#faults(video) : ""}
    </li>`;
  }

  /**
   * @param {VideoStatus} video
   * @param {string} name
   * @returns {import("./acts.js").Item[]}
   */
  #acts(video, name) {
    /** @type {import("./acts.js").Item[]} */
    const acts = [];
    if (inWork(video)) {
      acts.push({ label: t("library.cancel"), icon: "stop", act: () => void this.#act(video, "cancel") });
    } else {
      if (video.state !== "indexed") {
        acts.push({ label: t("library.retry"), icon: "retry", act: () => void this.#act(video, "retry") });
      }
      acts.push({ label: t("library.rerun"), icon: "history", act: () => this.#askAgain(video) });
    }
    acts.push({
      label: t("library.delete"),
      icon: "trash",
      danger: true,
      act: () => deletions.add(video.video_id, name),
    });
    return acts;
  }

  /** @param {VideoStatus} video */
  #faults(video) {
    const stages = video.stages.filter((stage) => stage.state === "failed");
    const faults = stages.length
      ? stages.map((stage) => ({ where: stageName(stage.stage), ...stage }))
      : [{ where: t(`state.${video.state}`), error: video.error, error_class: video.error_class, attempts: 0 }];
    return html`<div class="faults">
      <dl>
        ${faults.map(
          ({ where, error, error_class, attempts }) => html`
            <dt>${attempts > 1 ? t("fault.where", { stage: where, n: attempts }) : where}</dt>
            <dd>${error ?? t("fault.unknown")}</dd>
            <dd>${advice(error_class)}</dd>
          `,
        )}
      </dl>
      <button class="button" @click=${() => void this.#act(video, "retry")}>${icon("retry", true)} ${t("library.retry")}</button>
    </div>`;
  }

  /** @param {VideoStatus} video */
  #form(video) {
    const some = (/** @type {Event} */ event) => {
      const form = /** @type {HTMLFormElement} */ (/** @type {HTMLElement} */ (event.currentTarget).closest("form"));
      /** @type {HTMLInputElement} */ (form.querySelector("[value=some]")).checked = true;
    };
    return html`<form @submit=${this.#runAgain}>
      <fieldset>
        <legend class="note">${t("rerun.text")}</legend>
        <label class="choice"><input type="radio" name="which" value="missing" checked autofocus /> ${t("rerun.missing")}</label>
        <label class="choice"><input type="radio" name="which" value="all" /> ${t("rerun.all")}</label>
        <label class="choice"><input type="radio" name="which" value="some" /> ${t("rerun.some")}</label>
        <div class="inner">
          ${video.stages
            .filter(({ stage }) => stage !== "sidecar")
            .map(
              ({ stage }) =>
                html`<label class="choice"><input type="checkbox" name="stage" value=${stage} @change=${some} /> ${stageName(stage)}</label>`,
            )}
        </div>
      </fieldset>
      <div class="acts"><button class="button solid">${t("rerun.go")}</button></div>
    </form>`;
  }
}

/**
 * What to do about an error of a class.
 * @param {string | null} errorClass
 */
function advice(errorClass) {
  const key = `advice.${errorClass}`;
  return t(known(key) ? key : "advice.other");
}

customElements.define("sf-library", SfLibrary);
