/**
 * sf-player: a video at a moment, with its lanes and its transcript.
 *
 * Properties: `route` (see app.js): `id` in its path; `t` (seconds) and `q` (the search that led here) in its query.
 * Events: none; it keeps `t` in the address.
 *
 * Keys: Space or k plays and pauses; left and right go from scene to scene, with Shift by 5 s; j and l by 10 s; n and p go
 * from hit to hit; c shows subtitles; f fills the screen.
 */

import { LitElement, css, html, nothing } from "lit";
import { address, ask, picture, Problem, storePicture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { navigate } from "../router.js";
import { readSprites } from "../sprites.js";
import { store, Watch } from "../store.js";
import { date, known, t, time, videoName } from "../text.js";
import { strengthOf } from "./timeline.js";
import { toast, toastError } from "./toast.js";
import "./transcript.js";

/** @typedef {import("../types.js").SearchAnswer} SearchAnswer */
/** @typedef {import("../types.js").SearchHit} SearchHit */
/** @typedef {import("../types.js").TimelineScene} TimelineScene */
/** @typedef {import("../types.js").TimelinePage} TimelinePage */
/** @typedef {"transcript" | "people" | "screen"} Tab */

const PAGE = 200;
/** Hits that a request asks for, and pages of them at most. */
const HITS = 50;
const HIT_PAGES = 4;
/** Part of the best score from which a hit's lines are marked. */
const STRONG = 0.6;
/** Just behind a scene's first instant, so that rounding never shows the scene before. */
const INSIDE_S = 0.001;

export class SfPlayer extends LitElement {
  static properties = {
    route: { attribute: false },
    scenes: { state: true },
    media: { state: true },
    duration: { state: true },
    hits: { state: true },
    sprites: { state: true },
    phase: { state: true },
    problem: { state: true },
    broken: { state: true },
    captions: { state: true },
    tab: { state: true },
    hit: { state: true },
    paused: { state: true },
  };

  static styles = [
    controls,
    css`
      :host {
        width: 100%;
        max-width: calc(var(--width) + 2 * var(--gutter));
        margin: 0 auto;
        padding: var(--s3) var(--gutter) var(--s8);
      }
      .view {
        display: grid;
        grid-template-columns: minmax(0, 1fr) minmax(320px, 26%);
        gap: 0 var(--s6);
        align-items: start;
      }
      .title {
        display: flex;
        align-items: center;
        gap: var(--s2);
        min-width: 0;
        margin-bottom: var(--s2);
      }
      .title .button {
        margin-left: -10px;
      }
      .title h1 {
        overflow: hidden;
        min-width: 0;
        font-size: var(--text-l);
        line-height: 24px;
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      .title .note {
        flex: none;
      }
      .screen {
        position: relative;
        display: grid;
        place-items: center;
        overflow: hidden;
        border-radius: var(--radius);
        background: #000;
        aspect-ratio: 16 / 9;
        width: 100%;
        max-height: max(240px, calc(100vh - var(--header) - 312px));
      }
      video {
        position: absolute;
        inset: 0;
        width: 100%;
        height: 100%;
        object-fit: contain;
      }
      video:focus-visible {
        outline-offset: -2px;
      }
      .unplayable {
        display: grid;
        gap: var(--s2);
        justify-items: center;
        max-width: 480px;
        padding: var(--s6);
        color: var(--on-picture);
        text-align: center;
      }
      .bar {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: var(--s1);
        min-height: var(--target);
        margin: var(--s2) 0;
      }
      .bar .gap {
        flex: 1;
      }
      .bar .found {
        display: flex;
        align-items: center;
        gap: var(--s1);
        min-width: 0;
        font-size: var(--text-s);
      }
      .bar .found::before {
        content: "";
        width: 8px;
        height: 8px;
        flex: none;
        margin-right: var(--s1);
        border-radius: 50%;
        background: var(--hit);
      }
      .bar .found p {
        overflow: hidden;
        min-width: 0;
        text-overflow: ellipsis;
        white-space: nowrap;
      }
      .bar .button[aria-pressed="true"] {
        background: var(--hover);
        box-shadow: inset 0 -2px 0 var(--ink);
      }
      .side {
        position: sticky;
        top: calc(var(--header) + var(--s3));
        display: flex;
        flex-direction: column;
        height: calc(100vh - var(--header) - var(--s8));
        min-height: 360px;
        border: 1px solid var(--line);
        border-radius: var(--radius);
        overflow: hidden;
      }
      .tabs {
        display: flex;
        flex: none;
        padding: 0 var(--s2);
        border-bottom: 1px solid var(--line);
      }
      .tabs button {
        position: relative;
        min-height: 48px;
        padding: 0 var(--s3);
        border: 0;
        background: none;
        color: var(--ink-2);
        font-size: var(--text-s);
        font-weight: var(--strong);
        cursor: pointer;
      }
      .tabs button:hover {
        color: var(--ink);
      }
      .tabs button:focus-visible {
        outline-offset: -4px;
      }
      .tabs button[aria-selected="true"] {
        color: var(--ink);
      }
      .tabs button[aria-selected="true"]::after {
        content: "";
        position: absolute;
        inset: auto var(--s3) -1px;
        height: 2px;
        background: var(--ink);
      }
      .panel {
        display: flex;
        flex: 1;
        flex-direction: column;
        min-height: 0;
      }
      .panel sf-transcript {
        flex: 1;
      }
      .list {
        overflow-y: auto;
        padding: var(--s2);
      }
      .list > li {
        padding: var(--s1) var(--s2);
        border-radius: var(--radius);
      }
      .list > li:has(h3) {
        padding: var(--s2);
      }
      .list h3 {
        font-size: var(--text-m);
        overflow-wrap: anywhere;
      }
      .moments {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s1);
        margin-top: var(--s1);
      }
      .moments .chip {
        padding: 0 var(--s3);
      }
      .text {
        display: grid;
        grid-template-columns: 56px minmax(0, 1fr);
        width: 100%;
        min-height: var(--target);
        align-items: center;
        padding: var(--s1) var(--s1);
        border: 0;
        border-radius: var(--radius);
        background: none;
        text-align: left;
        cursor: pointer;
        overflow-wrap: anywhere;
      }
      .text:hover {
        background: var(--hover);
      }
      .text .time {
        color: var(--ink-3);
        font-size: var(--text-s);
      }
      .wait {
        display: grid;
        gap: var(--s4);
        padding: var(--s4);
      }
      .wait .skeleton {
        height: 14px;
      }
      .keys {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s1) var(--s4);
        margin-top: var(--s5);
        color: var(--ink-3);
        font-size: var(--text-xs);
      }
      kbd {
        display: inline-block;
        min-width: 20px;
        padding: 0 var(--s1);
        border: 1px solid var(--line);
        border-radius: 4px;
        font: inherit;
        text-align: center;
        color: var(--ink-2);
      }
      .lost {
        display: grid;
        justify-items: start;
        gap: var(--s3);
        width: min(560px, 100%);
        margin: 12vh auto 0;
        color: var(--ink-2);
      }
      .lost h1 {
        color: var(--ink);
      }
      @media (hover: none) {
        .keys {
          display: none;
        }
      }
      @media (max-width: 1023px) {
        .view {
          grid-template-columns: minmax(0, 1fr);
        }
        .screen {
          position: sticky;
          z-index: 20;
          top: var(--header);
          max-height: 46vh;
        }
        .side {
          position: static;
          height: 64vh;
          margin-top: var(--s5);
        }
        .keys {
          display: none;
        }
      }
      @media (max-width: 719px) {
        .screen {
          width: auto;
          margin: 0 calc(-1 * var(--gutter));
          border-radius: 0;
        }
        .bar .found {
          flex-basis: 100%;
        }
        .bar .gap {
          display: none;
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {import("../app.js").Route} */
    this.route = /** @type {any} */ (undefined);
    this.videoId = "";
    this.q = "";
    /** @type {TimelineScene[]} */
    this.scenes = [];
    /** @type {TimelinePage["media"] | null} */
    this.media = null;
    this.duration = 0;
    /** @type {SearchHit[]} In the order of time. */
    this.hits = [];
    /** Index of the hit that is shown. */
    this.hit = -1;
    /** @type {import("../sprites.js").Sprite[]} */
    this.sprites = [];
    /** @type {"waiting" | "done" | "missing" | "failed"} */
    this.phase = "waiting";
    this.problem = "";
    this.broken = false;
    this.captions = false;
    this.paused = true;
    this.tab = /** @type {Tab} */ ("transcript");
    /** @type {number | null} Where to stand once the video is open. */
    this.start = null;
    this.playAtOnce = false;
    /** The run whose timeline is shown. */
    this.published = /** @type {number | null} */ (null);
    this.wasAway = false;
    this.lastTime = 0;
    this.frame = 0;
    /** @type {TimelineScene[] | null} What `segments` were made of. */
    this.segmentsOf = null;
    /** @type {import("../types.js").Segment[]} */
    this.segmentsFound = [];
    /** @type {SearchHit[] | null} What `strong` was made of. */
    this.strongOf = null;
    /** @type {SearchHit[]} */
    this.strongFound = [];
    /** @type {AbortController | null} */
    this.loading = null;
    /** @type {AbortController | null} */
    this.searching = null;
    this.onKey = (/** @type {KeyboardEvent} */ event) => this.#key(event);
    this.onStore = () => this.#recover();
  }

  connectedCallback() {
    super.connectedCallback();
    addEventListener("keydown", this.onKey);
    store.addEventListener("change", this.onStore);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    removeEventListener("keydown", this.onKey);
    store.removeEventListener("change", this.onStore);
    cancelAnimationFrame(this.frame);
    this.loading?.abort();
    this.searching?.abort();
  }

  get video() {
    return /** @type {HTMLVideoElement | null} */ (this.renderRoot.querySelector("video"));
  }

  get status() {
    return store.videos.get(this.videoId) ?? null;
  }

  get now() {
    return this.video?.currentTime ?? 0;
  }

  /** Segments of all scenes, each once. */
  get segments() {
    if (this.segmentsOf !== this.scenes) {
      this.segmentsOf = this.scenes;
      this.segmentsFound = this.scenes.flatMap((scene) => scene.segments);
    }
    return this.segmentsFound;
  }

  /** The hits that are worth a mark beside the best one. */
  get strong() {
    if (this.strongOf !== this.hits) {
      this.strongOf = this.hits;
      this.strongFound = this.hits.filter((hit) => strengthOf(hit, this.hits) >= STRONG);
    }
    return this.strongFound;
  }

  /** @param {import("lit").PropertyValues} changed */
  willUpdate(changed) {
    if (!changed.has("route") || !this.route) return;
    const { id } = this.route.params;
    const q = this.route.query.get("q") ?? "";
    const at = Number.parseFloat(this.route.query.get("t") ?? "");
    const moment = Number.isFinite(at) && at >= 0 ? at : null;
    this.playAtOnce = Boolean(this.route.state.play);
    if (id !== this.videoId) {
      this.videoId = id;
      this.q = "";
      this.hits = [];
      this.start = moment;
      void this.#load();
    } else if (moment !== null) {
      this.start = moment;
      this.#stand();
    }
    if (q !== this.q) {
      this.q = q;
      void this.#search();
    }
    this.#pickHit(moment ?? 0);
  }

  updated() {
    const name = this.status ? videoName(this.status) : this.videoId;
    document.title = t("player.title", { name });
    this.#tick();
  }

  // Data.

  async #load() {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const { signal } = loading;
    this.phase = "waiting";
    this.broken = false;
    this.media = null;
    this.scenes = [];
    this.sprites = [];
    this.duration = 0;
    try {
      await store.video(this.videoId);
      if (signal.aborted) return;
      this.published = this.status?.published_run ?? null;
      this.duration = this.status?.duration_s ?? 0;
      await this.#read(signal);
    } catch (error) {
      if (signal.aborted) return;
      this.phase = error instanceof Problem && error.status === 404 && !this.status ? "missing" : "failed";
      this.problem = error instanceof Problem && !error.passing ? error.message : t("problem.passing");
    }
  }

  /** @param {AbortSignal} signal */
  async #read(signal) {
    /** @type {TimelineScene[]} */
    const scenes = [];
    /** @type {number | null} */
    let after = -1;
    while (after !== null) {
      /** @type {TimelinePage} */
      const page = await ask(`/videos/${this.videoId}/timeline`, { query: { after_idx: after, limit: PAGE }, signal });
      scenes.push(...page.scenes);
      this.media = page.media;
      this.duration = page.duration_s ?? this.duration;
      this.scenes = [...scenes];
      this.phase = "done";
      if (after === -1 && page.sprites) {
        readSprites(this.videoId, signal).then(
          (sprites) => (this.sprites = sprites),
          () => {},
        );
      }
      after = page.next_after_idx;
    }
  }

  async #search() {
    this.searching?.abort();
    this.hits = [];
    this.hit = -1;
    if (!this.q) return;
    const { signal } = (this.searching = new AbortController());
    try {
      /** @type {string | null} */
      let cursor = null;
      for (let page = 0; page < HIT_PAGES; page++) {
        /** @type {SearchAnswer} */
        const answer = await ask("/search", {
          body: { query: this.q, video_ids: [this.videoId], limit: HITS, ...(cursor && { cursor }) },
          signal,
          retry: true,
        });
        this.hits = [...this.hits, ...answer.hits].sort((a, b) => a.start_s - b.start_s);
        this.#pickHit(this.start ?? this.now);
        cursor = answer.next_cursor;
        if (!cursor) return;
      }
    } catch (error) {
      if (!signal.aborted) toastError(error);
    }
  }

  /** @param {number} seconds */
  #pickHit(seconds) {
    this.hit = this.hits.findIndex((hit) => hit.start_s - 0.01 <= seconds && seconds < hit.end_s);
  }

  /** Go on after the API was away, and read what a new run has published. */
  #recover() {
    const back = this.wasAway && !store.away;
    this.wasAway = store.away !== null;
    if (back && this.broken) {
      this.broken = false;
      this.start = this.lastTime;
    }
    const published = this.status?.published_run ?? null;
    if ((back && this.phase === "failed") || (this.phase === "done" && published !== this.published)) void this.#load();
  }

  // Playback.

  /** Stand at the wanted moment, and play if that is wanted. */
  #stand() {
    const { video, start } = this;
    if (!video || video.readyState < HTMLMediaElement.HAVE_METADATA) return;
    if (start !== null) {
      video.currentTime = start + INSIDE_S;
      this.start = null;
      this.#tick();
    }
    if (!this.playAtOnce) return;
    this.playAtOnce = false;
    // A browser may refuse sound before the first click; the video then stands at the moment.
    video.play().catch(() => {});
  }

  #opened() {
    const { video } = this;
    if (!video) return;
    if (Number.isFinite(video.duration)) this.duration = this.duration || video.duration;
    this.#stand();
  }

  #failed() {
    this.lastTime = this.now;
    this.broken = true;
    void store.check();
  }

  #tick() {
    const { now } = this;
    /** @type {import("./timeline.js").SfTimeline | null} */ (this.renderRoot.querySelector("sf-timeline"))?.at(now);
    /** @type {import("./transcript.js").SfTranscript | null} */ (this.renderRoot.querySelector("sf-transcript"))?.at(now);
  }

  #run() {
    cancelAnimationFrame(this.frame);
    this.paused = this.video?.paused ?? true;
    const step = () => {
      this.#tick();
      if (this.video && !this.video.paused) this.frame = requestAnimationFrame(step);
    };
    step();
    if (this.paused) this.#keep();
  }

  /** Keep the moment in the address, so that a reload stands here again. */
  #keep() {
    if (!this.isConnected || this.start !== null) return;
    const query = new URLSearchParams(location.search);
    query.set("t", String(Math.round(this.now * 100) / 100));
    history.replaceState({ ...history.state, play: undefined }, "", `${location.pathname}?${query}`);
  }

  /** @param {number} seconds */
  seek(seconds) {
    const { video } = this;
    if (!video) return;
    const at = Math.min(Math.max(0, seconds), this.duration || seconds);
    this.#pickHit(at);
    this.start = at;
    this.#stand();
    if (video.paused && this.start === null) this.#keep();
  }

  toggle() {
    const { video } = this;
    if (!video) return;
    if (video.paused) void video.play().catch(() => {});
    else video.pause();
  }

  /** @param {number} way -1 or 1 */
  stepScene(way) {
    const { now } = this;
    const starts = this.scenes.map((scene) => scene.start_s);
    // Back goes to this scene's start first, unless it has just begun.
    const target = way > 0 ? starts.find((at) => at > now + 0.05) : starts.findLast((at) => at < now - 1);
    this.seek(target ?? (way > 0 ? this.duration : 0));
  }

  /** @param {number} way -1 or 1 */
  stepHit(way) {
    const { now, hits } = this;
    const found = way > 0 ? hits.find((hit) => hit.start_s > now + 0.05) : hits.findLast((hit) => hit.start_s < now - 1);
    const target = found ?? (way > 0 ? hits[0] : hits[hits.length - 1]);
    if (target) this.seek(target.start_s);
  }

  toggleCaptions() {
    const track = this.video?.textTracks[0];
    if (!track) return;
    this.captions = track.mode !== "showing";
    track.mode = this.captions ? "showing" : "disabled";
  }

  toggleFullscreen() {
    if (document.fullscreenElement) void document.exitFullscreen();
    else void this.video?.requestFullscreen().catch(() => {});
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (this.hidden || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.composedPath()[0];
    if (target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement) return;
    if (event.composedPath().some((node) => node instanceof HTMLDialogElement)) return;
    const pressed = target instanceof HTMLButtonElement || target instanceof HTMLAnchorElement;
    switch (event.key) {
      case " ":
        if (pressed) return;
        this.toggle();
        break;
      case "k":
        this.toggle();
        break;
      case "ArrowLeft":
      case "ArrowRight": {
        const way = event.key === "ArrowLeft" ? -1 : 1;
        if (target instanceof Element && target.getAttribute("role") === "tab") return;
        if (event.shiftKey) this.seek(this.now + 5 * way);
        else this.stepScene(way);
        break;
      }
      case "j":
        this.seek(this.now - 10);
        break;
      case "l":
        this.seek(this.now + 10);
        break;
      case "n":
        this.stepHit(1);
        break;
      case "p":
        this.stepHit(-1);
        break;
      case "c":
        this.toggleCaptions();
        break;
      case "f":
        this.toggleFullscreen();
        break;
      default:
        return;
    }
    event.preventDefault();
  }

  // Acts.

  async #crop() {
    const { video } = this;
    if (!video?.videoWidth) return;
    video.pause();
    await import("./crop.js");
    await /** @type {import("./crop.js").SfCrop} */ (this.renderRoot.querySelector("sf-crop")).open(video);
  }

  /** @param {CustomEvent<{blob: Blob}>} event */
  async #byPicture(event) {
    try {
      const key = await storePicture(event.detail.blob);
      navigate(`/?${new URLSearchParams({ image: key })}`);
    } catch (error) {
      toastError(error);
    }
  }

  #similar() {
    const { now } = this;
    const scene = this.scenes.findLast((one) => one.start_s <= now + INSIDE_S) ?? this.scenes[0];
    if (!scene) return;
    const thumbnail = scene.keyframes[0]?.key ?? "";
    navigate(`/?${new URLSearchParams({ like: scene.scene_id })}`, { state: { thumbnail } });
  }

  async #copy() {
    const query = new URLSearchParams({ t: String(Math.round(this.now * 100) / 100) });
    if (this.q) query.set("q", this.q);
    try {
      await navigator.clipboard.writeText(`${location.origin}/v/${this.videoId}?${query}`);
      toast(t("player.copied", { time: time(this.now) }), { kind: "good" });
    } catch {
      toast(t("player.uncopied"), { kind: "bad" });
    }
  }

  // What is shown.

  render() {
    if (this.phase === "missing") return this.#lost();
    const { status } = this;
    const name = status ? videoName(status) : this.phase === "waiting" ? "" : this.videoId;
    return html`<div class="view">
        <section aria-label=${name || t("player.video")}>
          <div class="title">
            <a
              class="button quiet icon-only"
              href=${this.q ? `/?q=${encodeURIComponent(this.q)}` : "/library"}
              aria-label=${t(this.q ? "player.results" : "player.library")}
              title=${t(this.q ? "player.results" : "player.library")}
            >
              ${icon("back")}
            </a>
            <h1 title=${name}>${name || t("player.video")}</h1>
            ${status ? html`<span class="note">${date(status.created_at)}</span>` : ""}
          </div>
          <div class="screen">${this.#screen()}</div>
          ${this.#bar()}
          <sf-timeline
            .duration=${this.duration}
            .scenes=${this.scenes}
            .hits=${this.hits}
            .sprites=${this.sprites}
            @sf-seek=${this.#sought}
          ></sf-timeline>
          ${this.#keys()}
        </section>
        ${this.#side()}
      </div>
      <sf-crop @sf-picture=${this.#byPicture}></sf-crop>`;
  }

  /** @param {CustomEvent<{time: number}>} event */
  #sought(event) {
    this.seek(event.detail.time);
  }

  #screen() {
    if (this.media?.playable === "none" || this.broken) {
      const reason = this.media?.playable === "none" ? this.media.reason : null;
      return html`<div class="unplayable">
        <p>${store.away ? t("player.away") : reason ? t("player.unplayable.why", { why: reason }) : t("player.unplayable")}</p>
        ${store.away ? "" : html`<a class="button" href=${this.#file()} download>${icon("download")} ${t("player.download")}</a>`}
      </div>`;
    }
    const first = this.scenes.findLast((scene) => scene.start_s <= (this.start ?? 0) + INSIDE_S) ?? this.scenes[0];
    const poster = first?.keyframes[0]?.key;
    return html`<video
      controls
      playsinline
      preload="auto"
      tabindex="0"
      aria-label=${t("player.video")}
      poster=${poster ? picture(poster) : nothing}
      src=${this.videoId ? address(`/videos/${this.videoId}/media`) : nothing}
      @loadedmetadata=${this.#opened}
      @play=${this.#run}
      @pause=${this.#run}
      @seeked=${this.#tick}
      @timeupdate=${this.#passed}
      @error=${this.#failed}
    >
      <track
        kind="subtitles"
        label=${t("player.subtitles")}
        src=${this.videoId && this.status?.published_run ? address(`/videos/${this.videoId}/subtitles.vtt`) : nothing}
      />
    </video>`;
  }

  #passed() {
    this.#tick();
    const { hit } = this;
    this.#pickHit(this.now);
    if (this.hit < 0) this.hit = hit;
  }

  #file() {
    return address(`/videos/${this.videoId}/media`, { download: 1 });
  }

  #bar() {
    const ready = this.phase === "done" && !this.broken;
    return html`<div class="bar">
      ${this.q && this.hits.length
        ? html`<div class="found">
            <p>
              ${this.hit >= 0
                ? t("player.hit", { at: this.hit + 1, n: this.hits.length, query: this.q })
                : t("player.hits", { n: this.hits.length, query: this.q })}
            </p>
            <button class="button quiet icon-only" aria-label=${t("player.hit.previous")} @click=${() => this.stepHit(-1)}>
              ${icon("previous", true)}
            </button>
            <button class="button quiet icon-only" aria-label=${t("player.hit.next")} @click=${() => this.stepHit(1)}>
              ${icon("next", true)}
            </button>
          </div>`
        : ""}
      <span class="gap"></span>
      ${this.#act("captions", "player.captions", () => this.toggleCaptions(), ready, this.captions)}
      ${this.#act("similar", "player.similar", () => this.#similar(), ready && this.scenes.length > 0)}
      ${this.#act("crop", "player.crop", () => void this.#crop(), ready)}
      ${this.#act("link", "player.copy", () => void this.#copy(), true)}
      <a class="button quiet icon-only" href=${this.#file()} download aria-label=${t("player.download")} title=${t("player.download")}>
        ${icon("download")}
      </a>
    </div>`;
  }

  /**
   * @param {import("../icons.js").IconName} name
   * @param {import("../text.js").MessageKey} label
   * @param {() => void} act
   * @param {boolean} enabled
   * @param {boolean} [pressed]
   */
  #act(name, label, act, enabled, pressed) {
    return html`<button
      class="button quiet icon-only"
      aria-label=${t(label)}
      title=${t(label)}
      aria-pressed=${pressed === undefined ? nothing : pressed ? "true" : "false"}
      ?disabled=${!enabled}
      @click=${act}
    >
      ${icon(name)}
    </button>`;
  }

  #keys() {
    /** @type {[string[], import("../text.js").MessageKey][]} */
    const keys = [
      [["Space"], "player.key.play"],
      [["←", "→"], "player.key.scene"],
      [["j", "l"], "player.key.ten"],
      [["n", "p"], "player.key.hit"],
      [["c"], "player.key.captions"],
      [["f"], "player.key.full"],
    ];
    return html`<p class="keys">
      ${keys.map(([names, label]) => html`<span>${names.map((name) => html`<kbd>${name}</kbd> `)}${t(label)}</span>`)}
    </p>`;
  }

  #side() {
    const people = this.#people();
    const lines = this.scenes.flatMap((scene) => scene.screen);
    /** @type {{tab: Tab, label: import("../text.js").MessageKey, n: number | null}[]} */
    const tabs = [
      { tab: "transcript", label: "player.transcript", n: null },
      { tab: "people", label: "player.people", n: people.length },
      { tab: "screen", label: "player.screen", n: lines.length },
    ];
    const shown = tabs.filter(({ n }) => n !== 0);
    const tab = shown.some((one) => one.tab === this.tab) ? this.tab : "transcript";
    return html`<aside class="side" aria-label=${t("player.side")}>
      <div class="tabs" role="tablist" aria-label=${t("player.side")} @keydown=${this.#tabKey}>
        ${shown.map(
          (one) =>
            html`<button
              id="tab-${one.tab}"
              role="tab"
              aria-selected=${one.tab === tab ? "true" : "false"}
              aria-controls="panel"
              tabindex=${one.tab === tab ? 0 : -1}
              @click=${() => (this.tab = one.tab)}
            >
              ${t(one.label)}${one.n === null ? "" : ` ${one.n}`}
            </button>`,
        )}
      </div>
      <div id="panel" class="panel" role="tabpanel" aria-labelledby="tab-${tab}">
        ${this.phase === "waiting" && !this.scenes.length
          ? html`<div class="wait">${Array.from({ length: 7 }, () => html`<div class="skeleton"></div>`)}</div>`
          : this.phase === "failed"
            ? this.#failure()
            : tab === "transcript"
              ? this.#transcript()
              : tab === "people"
                ? this.#faces(people)
                : this.#lines(lines)}
      </div>
    </aside>`;
  }

  /** @param {KeyboardEvent} event */
  #tabKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const tabs = /** @type {HTMLElement[]} */ ([...this.renderRoot.querySelectorAll("[role=tab]")]);
    const at = tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    const next = tabs[(at + (event.key === "ArrowRight" ? 1 : -1) + tabs.length) % tabs.length];
    next.click();
    next.focus();
    event.preventDefault();
  }

  #transcript() {
    const { status } = this;
    const working = status && !this.segments.length && known(`player.state.${status.state}`) ? status.state : "";
    if (working) return html`<div class="wait"><p class="note">${t(/** @type {any} */ (`player.state.${working}`))}</p></div>`;
    return html`<sf-transcript .segments=${this.segments} .hits=${this.strong} @sf-seek=${this.#sought}></sf-transcript>`;
  }

  #people() {
    /** @type {Map<string, {id: string | null, name: string, at: number[]}>} */
    const people = new Map();
    for (const scene of this.scenes) {
      for (const { person_id, name, start_s } of scene.people) {
        const key = person_id ?? "";
        const person = people.get(key) ?? { id: person_id, name: name ?? t("timeline.unknown"), at: [] };
        person.at.push(start_s);
        people.set(key, person);
      }
    }
    return [...people.values()];
  }

  /** @param {{id: string | null, name: string, at: number[]}[]} people */
  #faces(people) {
    return html`<ul class="list">
      ${people.map(
        ({ id, name, at }) =>
          html`<li>
            <h3>${id ? html`<a href="/people/${id}">${name}</a>` : name}</h3>
            <div class="moments">
              ${at.map(
                (start) =>
                  html`<button class="chip time" aria-label=${t("transcript.jump", { time: time(start) })} @click=${() => this.seek(start)}>
                    ${time(start)}
                  </button>`,
              )}
            </div>
          </li>`,
      )}
    </ul>`;
  }

  /** @param {{text: string, ts_s: number}[]} lines */
  #lines(lines) {
    return html`<ul class="list">
      ${lines.map(
        ({ text, ts_s }) =>
          html`<li>
            <button class="text" @click=${() => this.seek(ts_s)}><span class="time">${time(ts_s)}</span><span>${text}</span></button>
          </li>`,
      )}
    </ul>`;
  }

  #failure() {
    return html`<div class="wait" role="alert">
      <p>${this.problem}</p>
      <button class="button" @click=${() => void this.#load()}>${icon("retry")} ${t("action.retry")}</button>
    </div>`;
  }

  #lost() {
    return html`<div class="lost">
      <h1>${t("player.missing")}</h1>
      <p>${t("player.missing.text", { id: this.videoId })}</p>
      <a class="button solid" href="/library">${t("search.library")}</a>
    </div>`;
  }
}

customElements.define("sf-player", SfPlayer);
