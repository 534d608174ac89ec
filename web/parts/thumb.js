/**
 * sf-thumb: the first keyframe of a video, asked for when it comes into view.
 *
 * Properties: `video` (VideoStatus).
 * Events: none.
 */

import { LitElement, css, html, nothing } from "lit";
import { ask, picture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { time } from "../text.js";

/** @type {Map<string, Promise<string | null>>} Keys by the video's id and published run. */
const keys = new Map();

/** @param {import("../types.js").VideoStatus} video */
function firstKeyframe(video) {
  const name = `${video.video_id}/${video.published_run}`;
  let key = keys.get(name);
  if (!key) {
    key = ask(`/videos/${video.video_id}/scenes`, { query: { limit: 1 } }).then(
      (/** @type {any} */ page) => page.scenes[0]?.keyframe_keys[0] ?? null,
      () => (keys.delete(name), null),
    );
    keys.set(name, key);
  }
  return key;
}

/** Tells elements that they have come near the view. */
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      /** @type {SfThumb} */ (target).near = true;
    }
  },
  { rootMargin: "400px" },
);

export class SfThumb extends LitElement {
  static properties = { video: { attribute: false }, near: { state: true }, key: { state: true } };

  static styles = [
    controls,
    css`
      .frame {
        position: relative;
        display: grid;
        place-items: center;
        aspect-ratio: 16 / 9;
        border-radius: var(--radius);
        overflow: hidden;
        background: var(--surface);
        color: var(--line-strong);
      }
      img {
        position: absolute;
        inset: 0;
        width: 100%;
        height: 100%;
        object-fit: cover;
      }
      .length {
        position: absolute;
        right: 6px;
        bottom: 6px;
        padding: 0 6px;
        border-radius: 4px;
        background: var(--scrim);
        color: var(--on-picture);
        font-size: var(--text-xs);
        line-height: 18px;
      }
    `,
  ];

  constructor() {
    super();
    /** @type {import("../types.js").VideoStatus | null} */
    this.video = null;
    this.near = false;
    /** @type {string | null} */
    this.key = null;
    this.asked = "";
  }

  connectedCallback() {
    super.connectedCallback();
    near.observe(this);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    near.unobserve(this);
  }

  updated() {
    const video = this.video;
    if (!this.near || !video || video.published_run === null) return;
    const name = `${video.video_id}/${video.published_run}`;
    if (this.asked === name) return;
    this.asked = name;
    void firstKeyframe(video).then((key) => {
      if (this.asked === name && key) this.key = key;
    });
  }

  render() {
    const video = this.video;
    if (!video) return nothing;
    return html`<div class="frame">
      ${icon("film")} ${this.key ? html`<img src=${picture(this.key)} alt="" decoding="async" />` : ""}
      ${video.duration_s === null ? "" : html`<span class="length time">${time(video.duration_s)}</span>`}
    </div>`;
  }
}

customElements.define("sf-thumb", SfThumb);
