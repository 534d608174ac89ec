/**
 * sf-transcript: what is said, line by line; it follows the playback, a line or word jumps to its moment.
 *
 * Properties: `segments` (Segment[], in the order of time), `hits` (SearchHit[]; their lines are marked).
 * Methods: `at(seconds)` tells where the playback is.
 * Events: `sf-seek` (detail: {time}).
 */

import { LitElement, css, html } from "lit";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { t, time } from "../text.js";

/** @typedef {import("../types.js").Segment} Segment */
/** @typedef {import("../types.js").SearchHit} SearchHit */

/** How early a line is shown in a pause. */
const AHEAD_S = 2;

export class SfTranscript extends LitElement {
  static properties = {
    segments: { attribute: false },
    hits: { attribute: false },
    wanted: { state: true },
    match: { state: true },
    active: { state: true },
    follow: { state: true },
  };

  static styles = [
    controls,
    css`
      :host {
        display: flex;
        flex-direction: column;
        min-height: 0;
      }
      .find {
        position: relative;
        display: flex;
        align-items: center;
        gap: var(--s1);
        padding: var(--s3);
      }
      .find > .icon {
        position: absolute;
        left: 24px;
        color: var(--ink-3);
      }
      .find .field {
        flex: 1;
        min-width: 0;
        padding-left: 36px;
        border-color: transparent;
        background: var(--surface);
      }
      .find .count {
        position: absolute;
        right: 112px;
        color: var(--ink-3);
        font-size: var(--text-xs);
        pointer-events: none;
      }
      .lines {
        position: relative;
        flex: 1;
        min-height: 0;
        overflow-y: auto;
        padding: 0 var(--s2) var(--s8);
        scrollbar-width: thin;
      }
      li {
        position: relative;
        display: grid;
        grid-template-columns: 60px minmax(0, 1fr);
        align-items: baseline;
        border-radius: var(--radius);
        content-visibility: auto;
        contain-intrinsic-size: auto 40px;
        cursor: pointer;
      }
      li:hover {
        background: var(--hover);
      }
      li.hit::before {
        content: "";
        position: absolute;
        left: 0;
        top: 8px;
        bottom: 8px;
        width: 4px;
        border-radius: 2px;
        background: var(--hit);
      }
      li.active {
        background: var(--surface);
      }
      li button {
        min-height: var(--target);
        padding: 0 var(--s2) 0 var(--s3);
        border: 0;
        background: none;
        color: var(--ink-3);
        font-size: var(--text-s);
        text-align: left;
        cursor: pointer;
      }
      li.active button {
        color: var(--ink);
        font-weight: var(--strong);
      }
      li p {
        padding: var(--s2) var(--s2) var(--s2) 0;
        color: var(--ink-2);
        overflow-wrap: anywhere;
      }
      li.active p {
        color: var(--ink);
      }
      .word {
        border-radius: 3px;
      }
      .word:hover {
        text-decoration: underline;
        text-underline-offset: 3px;
      }
      .word.now {
        box-shadow: 0 2px 0 var(--ink);
      }
      mark.here {
        background: var(--hit);
        color: var(--on-hit);
      }
      .back {
        position: sticky;
        bottom: var(--s3);
        display: flex;
        margin: 0 auto;
        box-shadow: var(--shadow);
      }
      .note {
        padding: var(--s3);
      }
    `,
  ];

  constructor() {
    super();
    /** @type {Segment[]} */
    this.segments = [];
    /** @type {SearchHit[]} */
    this.hits = [];
    this.wanted = "";
    /** Which of the matching lines is shown. */
    this.match = 0;
    this.active = -1;
    this.follow = true;
    this.now = 0;
  }

  get lines() {
    return /** @type {HTMLElement | null} */ (this.renderRoot.querySelector(".lines"));
  }

  /** Indices of the lines with the wanted words. */
  get found() {
    const wanted = this.wanted.trim().toLowerCase();
    if (!wanted) return [];
    return this.segments.flatMap((segment, index) => (segment.text.toLowerCase().includes(wanted) ? [index] : []));
  }

  /** @param {number} seconds */
  at(seconds) {
    this.now = seconds;
    let low = 0;
    let high = this.segments.length - 1;
    let found = -1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (this.segments[middle].start_s <= seconds + 0.05) {
        found = middle;
        low = middle + 1;
      } else high = middle - 1;
    }
    // In a pause the line that comes next says more than the one that has ended.
    const next = this.segments[found + 1];
    if (next && next.start_s - seconds < AHEAD_S && !(found >= 0 && seconds < this.segments[found].end_s)) found++;
    this.active = found;
    this.#mark();
  }

  /** Mark the word that is being said. */
  #mark() {
    const words = this.renderRoot.querySelectorAll(".word");
    const said = this.segments[this.active]?.words ?? [];
    words.forEach((word, index) => {
      const now = said[index] && said[index].start_s <= this.now && this.now < said[index].end_s;
      word.classList.toggle("now", Boolean(now));
    });
  }

  /** @param {import("lit").PropertyValues} changed */
  updated(changed) {
    if (changed.has("segments")) this.at(this.now);
    if (changed.has("active")) {
      this.#mark();
      if (this.follow && !this.wanted) this.#show(this.active);
    }
    if ((changed.has("match") || changed.has("wanted")) && this.wanted) this.#show(this.found[this.match] ?? -1);
  }

  /** @param {number} index */
  #show(index) {
    const { lines } = this;
    const line = /** @type {HTMLElement | undefined} */ (lines?.querySelectorAll("li")[index]);
    if (!lines || !line) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const top = line.offsetTop - lines.clientHeight / 3;
    const far = Math.abs(lines.scrollTop - top) > 2 * lines.clientHeight;
    lines.scrollTo({ top, behavior: calm || far ? "instant" : "smooth" });
  }

  /** @param {number} seconds */
  #seek(seconds) {
    this.follow = true;
    this.dispatchEvent(new CustomEvent("sf-seek", { detail: { time: seconds } }));
  }

  /**
   * @param {MouseEvent} event
   * @param {Segment} segment
   */
  #click(event, segment) {
    if (getSelection()?.type === "Range") return;
    const word = event.composedPath()[0];
    const index = word instanceof HTMLElement && word.classList.contains("word") ? Number(word.dataset.index) : -1;
    this.#seek(segment.words[index]?.start_s ?? segment.start_s);
  }

  /** @param {KeyboardEvent} event */
  #findKey(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.#step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.wanted) {
      event.stopPropagation();
      this.wanted = "";
    }
  }

  /** @param {number} way */
  #step(way) {
    const { length } = this.found;
    if (length) this.match = (this.match + way + length) % length;
  }

  /** @param {Event} event */
  #find(event) {
    this.wanted = /** @type {HTMLInputElement} */ (event.currentTarget).value;
    this.match = 0;
  }

  #leave() {
    this.follow = false;
  }

  render() {
    if (!this.segments.length) return html`<p class="note">${t("transcript.none")}</p>`;
    const matches = this.found;
    const here = matches[this.match];
    return html`<div class="find">
        ${icon("search", true)}
        <input
          class="field"
          type="search"
          aria-label=${t("transcript.find")}
          placeholder=${t("transcript.find")}
          .value=${this.wanted}
          @input=${this.#find}
          @keydown=${this.#findKey}
        />
        ${this.wanted.trim()
          ? html`<span class="count time" role="status">
                ${matches.length ? t("transcript.count", { at: this.match + 1, n: matches.length }) : t("transcript.nothing")}
              </span>
              <button class="button quiet icon-only" aria-label=${t("transcript.previous")} @click=${() => this.#step(-1)}>
                ${icon("previous", true)}
              </button>
              <button class="button quiet icon-only" aria-label=${t("transcript.next")} @click=${() => this.#step(1)}>
                ${icon("next", true)}
              </button>`
          : ""}
      </div>
      <div
        class="lines"
        tabindex="0"
        role="region"
        aria-label=${t("player.transcript")}
        @wheel=${this.#leave}
        @touchmove=${this.#leave}
      >
        <ol>
          ${this.segments.map((segment, index) => this.#line(segment, index, index === here))}
        </ol>
        ${this.follow
          ? ""
          : html`<button
              class="button back"
              @click=${() => {
                this.follow = true;
                this.wanted = "";
                this.#show(this.active);
              }}
            >
              ${icon("speech", true)} ${t("transcript.follow")}
            </button>`}
      </div>`;
  }

  /**
   * @param {Segment} segment
   * @param {number} index
   * @param {boolean} here whether the search stands here
   */
  #line(segment, index, here) {
    const active = index === this.active;
    const hit = this.hits.some((one) => segment.start_s < one.end_s && segment.end_s > one.start_s);
    return html`<li
      class="${hit ? "hit" : ""} ${active ? "active" : ""}"
      aria-current=${active ? "true" : "false"}
      @click=${(/** @type {MouseEvent} */ event) => this.#click(event, segment)}
    >
      <button class="time" aria-label=${t("transcript.jump", { time: time(segment.start_s) })}>${time(segment.start_s)}</button>
      <p>${this.wanted.trim() ? this.#findIn(segment.text, here) : active ? words(segment) : segment.text}</p>
    </li>`;
  }

  /**
   * @param {string} text
   * @param {boolean} here
   */
  #findIn(text, here) {
    const wanted = this.wanted.trim().toLowerCase();
    const lower = text.toLowerCase();
    const parts = [];
    let at = 0;
    for (let next = lower.indexOf(wanted); next >= 0; next = lower.indexOf(wanted, at)) {
      parts.push(text.slice(at, next), html`<mark class=${here ? "here" : ""}>${text.slice(next, next + wanted.length)}</mark>`);
      at = next + wanted.length;
    }
    parts.push(text.slice(at));
    return parts;
  }
}

/** @param {Segment} segment */
function words(segment) {
  if (!segment.words.length) return segment.text;
  return segment.words.map((word, index) => html`<span class="word" data-index=${index}>${word.text.trim()}</span> `);
}

customElements.define("sf-transcript", SfTranscript);
