/**
 * sf-hit: one found scene: its keyframe with the time, the words with the match marked, and why it was found.
 *
 * Properties: `hit` (SearchHit), `href` (where it plays), `peeking` (the scene plays muted in place).
 * Events: `sf-similar` and `sf-crop` (detail: {hit, image}) when more like it, or a search in its picture, is wanted.
 */

import { LitElement, css, html, nothing } from "lit";
import { address, picture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { placed } from "../placed.js";
import { list, similarity, t, time } from "../text.js";

/** @typedef {import("../types.js").SearchHit} SearchHit */

/** Characters of a transcript before the first match, and in all. */
const BEFORE = 60;
const SHOWN = 220;
const SHAPE = 16 / 9;

export class SfHit extends LitElement {
  static properties = {
    hit: { attribute: false },
    href: {},
    peeking: { type: Boolean, reflect: true },
    size: { state: true },
  };

  static styles = [
    controls,
    css`
      :host {
        min-width: 0;
      }
      article {
        position: relative;
        display: grid;
        gap: var(--s2);
      }
      .picture {
        position: relative;
        display: block;
        overflow: hidden;
        border-radius: var(--radius);
        background: #000;
        aspect-ratio: 16 / 9;
        text-decoration: none;
      }
      .picture:focus-visible {
        outline-offset: 3px;
      }
      img,
      video {
        position: absolute;
        inset: 0;
        width: 100%;
        height: 100%;
        object-fit: contain;
      }
      .box {
        position: absolute;
        border: 2px solid var(--hit);
        border-radius: 6px;
        box-shadow: 0 0 0 1px #0008;
      }
      .at {
        position: absolute;
        left: var(--s2);
        bottom: var(--s2);
        display: inline-flex;
        align-items: center;
        gap: 6px;
        padding: 2px var(--s2);
        border-radius: 6px;
        background: var(--scrim);
        color: var(--on-picture);
        font-size: var(--text-s);
        font-weight: var(--strong);
        line-height: 20px;
      }
      .at::before {
        content: "";
        width: 8px;
        height: 8px;
        border-radius: 50%;
        background: var(--hit);
      }
      .play {
        position: absolute;
        right: var(--s2);
        bottom: var(--s2);
        display: grid;
        place-items: center;
        width: 32px;
        height: 32px;
        border-radius: 50%;
        background: var(--scrim);
        color: var(--on-picture);
        opacity: 0;
        transition: opacity var(--quick);
      }
      .acts {
        position: absolute;
        z-index: 1;
        top: var(--s1);
        right: var(--s1);
        display: flex;
        gap: var(--s1);
        opacity: 0;
        transition: opacity var(--quick);
      }
      .acts .button {
        border-color: transparent;
        background: var(--scrim);
        color: var(--on-picture);
      }
      .acts .button:hover {
        background: #000;
      }
      .acts .button:focus-visible {
        outline-color: #fff;
        outline-offset: -3px;
      }
      article:hover .acts,
      article:focus-within .acts,
      article:hover .play,
      article:focus-within .play {
        opacity: 1;
      }
      .words {
        display: -webkit-box;
        overflow: hidden;
        -webkit-box-orient: vertical;
        -webkit-line-clamp: 3;
        line-clamp: 3;
        color: var(--ink);
        overflow-wrap: anywhere;
      }
      .why {
        display: flex;
        flex-wrap: wrap;
        gap: var(--s1) var(--s3);
        color: var(--ink-2);
        font-size: var(--text-s);
        line-height: 20px;
      }
      .why li {
        display: inline-flex;
        align-items: center;
        gap: 6px;
        min-width: 0;
        overflow-wrap: anywhere;
      }
      .why .icon {
        color: var(--hit-ink);
      }
      @media (hover: none) {
        .acts {
          opacity: 1;
        }
      }
    `,
  ];

  constructor() {
    super();
    /** @type {SearchHit} */
    this.hit = /** @type {any} */ (undefined);
    this.href = "";
    this.peeking = false;
    /** @type {{width: number, height: number} | null} Of the keyframe. */
    this.size = null;
  }

  /** The keyframe that shows why, and what to frame in it. */
  get frame() {
    const { keyframe_keys: keys, highlights } = this.hit;
    const face = highlights.people.find((person) => person.ordinal !== null);
    const line = highlights.screen[0];
    const ordinal = face?.ordinal ?? line?.ordinal ?? highlights.keyframe?.ordinal ?? Math.floor((keys.length - 1) / 2);
    return { key: keys[ordinal] ?? keys[0], box: face?.box ?? line?.box ?? null };
  }

  async focus() {
    if (!this.hasUpdated) await this.updateComplete;
    this.renderRoot.querySelector("a")?.focus();
  }

  /** Play the scene muted in place, or stop. */
  peek() {
    this.peeking = !this.peeking;
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    if (!changed.has("peeking") || !this.peeking) return;
    const video = this.renderRoot.querySelector("video");
    if (!video) return;
    video.muted = true;
    video.addEventListener("loadedmetadata", () => {
      video.currentTime = this.hit.start_s;
      video.play().catch(() => (this.peeking = false));
    });
    video.addEventListener("timeupdate", () => {
      if (video.currentTime >= this.hit.end_s) video.currentTime = this.hit.start_s;
    });
    video.addEventListener("error", () => (this.peeking = false));
    video.src = address(`/videos/${this.hit.video_id}/media`);
  }

  /** @param {string} name */
  #tell(name) {
    const image = this.renderRoot.querySelector("img");
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, composed: true, detail: { hit: this.hit, image } }));
  }

  /** @param {Event} event */
  #loaded(event) {
    const image = /** @type {HTMLImageElement} */ (event.currentTarget);
    this.size = { width: image.naturalWidth, height: image.naturalHeight };
  }

  render() {
    const { hit } = this;
    const { key, box } = this.frame;
    return html`<article>
      <a class="picture" href=${this.href} data-play aria-label=${this.#name()}>
        ${key
          ? html`<img
              src=${picture(key)}
              width="640"
              height="360"
              alt=""
              loading="lazy"
              decoding="async"
              @load=${this.#loaded}
            />`
          : ""}
        ${box && this.size && !this.peeking ? html`<span class="box" ${placed(this.#place(box))}></span>` : ""}
        ${this.peeking ? html`<video playsinline preload="auto" tabindex="-1" aria-hidden="true"></video>` : ""}
        <span class="at time">${time(hit.start_s)}</span>
        <span class="play">${icon("play", true)}</span>
      </a>
      <div class="acts">
        <button
          class="button icon-only"
          title=${t("hit.similar")}
          aria-label=${t("hit.similar.at", { time: time(hit.start_s) })}
          @click=${() => this.#tell("sf-similar")}
        >
          ${icon("similar")}
        </button>
        ${key
          ? html`<button
              class="button icon-only"
              title=${t("hit.crop")}
              aria-label=${t("hit.crop.at", { time: time(hit.start_s) })}
              @click=${() => this.#tell("sf-crop")}
            >
              ${icon("crop")}
            </button>`
          : ""}
      </div>
      ${hit.transcript ? html`<p class="words">${marked(hit.transcript, hit.highlights.words)}</p>` : ""}
      <ul class="why" aria-label=${t("hit.why")}>
        ${reasons(hit).map(
          (reason) => html`<li>${icon(reason.icon, true)}<span>${reason.text}</span></li>`,
        )}
      </ul>
    </article>`;
  }

  #name() {
    const reason = reasons(this.hit)[0];
    return t("hit.name", { time: time(this.hit.start_s), why: reason ? reason.text : "" });
  }

  /**
   * Where a box of the keyframe is in the picture, which shows the keyframe whole.
   * @param {import("../types.js").Box} box
   */
  #place([x, y, width, height]) {
    const size = /** @type {{width: number, height: number}} */ (this.size);
    const shape = size.width / size.height;
    const wide = Math.min(1, shape / SHAPE);
    const high = Math.min(1, SHAPE / shape);
    const percent = (/** @type {number} */ value) => `${(value * 100).toFixed(2)}%`;
    return {
      left: percent((1 - wide) / 2 + (x / size.width) * wide),
      top: percent((1 - high) / 2 + (y / size.height) * high),
      width: percent((width / size.width) * wide),
      height: percent((height / size.height) * high),
    };
  }
}

/**
 * A transcript around its first match, with the matches marked. Spans count characters, as Python does.
 * @param {string} text
 * @param {{start: number, end: number}[]} spans
 */
export function marked(text, spans) {
  const characters = Array.from(text);
  let from = 0;
  if (spans.length && spans[0].start > BEFORE) {
    from = spans[0].start - BEFORE;
    while (from > 0 && characters[from - 1] !== " ") from--;
  }
  const to = Math.min(characters.length, from + Math.max(SHOWN, (spans[0]?.end ?? 0) - from));
  /** @type {unknown[]} */
  const parts = [from > 0 ? "… " : nothing];
  let at = from;
  for (const { start, end } of spans) {
    if (start < at || end > to) continue;
    parts.push(characters.slice(at, start).join(""), html`<mark>${characters.slice(start, end).join("")}</mark>`);
    at = end;
  }
  parts.push(characters.slice(at, to).join(""), to < characters.length ? "…" : nothing);
  return parts;
}

/**
 * Why a scene was found, the surest first.
 * @param {SearchHit} hit
 * @returns {{icon: import("../icons.js").IconName, text: string}[]}
 */
export function reasons(hit) {
  const { highlights, similarities } = hit;
  /** @type {{icon: import("../icons.js").IconName, text: string}[]} */
  const found = [];
  const characters = Array.from(hit.transcript);
  const words = highlights.words.map(({ start, end }) => characters.slice(start, end).join("").toLowerCase());
  const said = [...new Set(words)].slice(0, 3).map((word) => t("hit.quoted", { words: word }));
  if (said.length) found.push({ icon: "speech", text: t("hit.said", { words: list(said) }) });
  for (const line of highlights.screen.slice(0, 2)) {
    found.push({ icon: "screen", text: t("hit.shown", { words: t("hit.quoted", { words: short(line.text) }) }) });
  }
  for (const person of highlights.people) {
    found.push({ icon: "person", text: t("hit.who", { name: person.name, value: similarity(person.confidence) }) });
  }
  const seen = highlights.keyframe?.similarity ?? similarities.vision;
  if (seen !== undefined) found.push({ icon: "eye", text: t("hit.seen", { value: similarity(seen) }) });
  if (similarities.text !== undefined) {
    found.push({ icon: "sound", text: t("hit.meant", { value: similarity(similarities.text) }) });
  }
  return found;
}

/** @param {string} text */
function short(text) {
  const characters = Array.from(text);
  return characters.length > 40 ? `${characters.slice(0, 39).join("")}…` : text;
}

customElements.define("sf-hit", SfHit);
