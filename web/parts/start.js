/**
 * sf-start: what the search view shows before a search: things to ask, and the newest videos; without a video the way to
 * the first one.
 *
 * Properties: none; it reads the store.
 * Events: `sf-ask` (detail: {query}) when an example is chosen.
 */

import { LitElement, css, html } from "lit";
import { repeat } from "lit/directives/repeat.js";
import { ask, picture } from "../api.js";
import { controls } from "../controls.js";
import { icon } from "../icons.js";
import { store, Watch } from "../store.js";
import { known, t, time, videoName } from "../text.js";

/** @typedef {import("../types.js").VideoStatus} VideoStatus */

const EXAMPLES = /** @type {const} */ (["start.example.1", "start.example.2", "start.example.3"]);
const RECENT = 10;

/** @type {Map<string, Promise<string>>} A video's picture, by its id and run. */
const pictures = new Map();

/** @param {VideoStatus} video */
function pictureOf(video) {
  const name = `${video.video_id}:${video.published_run}`;
  let found = pictures.get(name);
  if (!found) {
    found = ask(`/videos/${video.video_id}/scenes`, { query: { limit: 1 } }).then(
      (page) => /** @type {{scenes: {keyframe_keys: string[]}[]}} */ (page).scenes[0]?.keyframe_keys[0] ?? "",
      () => "",
    );
    pictures.set(name, found);
  }
  return found;
}

export class SfStart extends LitElement {
  static properties = { keys: { state: true } };

  static styles = [
    controls,
    css`
      :host {
        width: 100%;
        max-width: var(--width);
        margin: 0 auto;
      }
      .examples {
        display: flex;
        flex-wrap: wrap;
        justify-content: center;
        gap: var(--s2);
        margin-top: var(--s4);
      }
      .recent {
        margin-top: clamp(40px, 10vh, 96px);
      }
      .recent header {
        display: flex;
        align-items: center;
        justify-content: space-between;
        min-height: var(--target);
        margin-bottom: var(--s2);
      }
      .recent header a {
        display: inline-flex;
        align-items: center;
        min-height: var(--target);
        color: var(--ink-2);
        font-size: var(--text-s);
      }
      .videos {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr));
        gap: var(--s6);
      }
      .video {
        display: grid;
        gap: var(--s2);
        text-decoration: none;
        min-width: 0;
      }
      .video > * {
        min-width: 0;
      }
      .frame {
        position: relative;
        display: grid;
        place-items: center;
        overflow: hidden;
        border-radius: var(--radius);
        background: var(--surface);
        color: var(--ink-3);
        aspect-ratio: 16 / 9;
      }
      .frame img {
        width: 100%;
        height: 100%;
        object-fit: cover;
        transition: opacity var(--quick);
      }
      .video:hover img {
        opacity: 0.88;
      }
      .length {
        position: absolute;
        right: var(--s2);
        bottom: var(--s2);
        padding: 0 6px;
        border-radius: 6px;
        background: var(--scrim);
        color: var(--on-picture);
        font-size: var(--text-xs);
        line-height: 20px;
      }
      .video h3 {
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
        font-size: var(--text-s);
      }
      .video p {
        color: var(--ink-3);
        font-size: var(--text-s);
        line-height: 16px;
      }
      .first {
        display: grid;
        justify-items: center;
        gap: var(--s3);
        margin-top: var(--s12);
        color: var(--ink-2);
        text-align: center;
      }
      @media (max-width: 719px) {
        .videos {
          grid-template-columns: repeat(2, minmax(0, 1fr));
          gap: var(--s5) var(--s3);
        }
      }
    `,
  ];

  constructor() {
    super();
    new Watch(this);
    /** @type {Map<string, string>} */
    this.keys = new Map();
  }

  get recent() {
    return [...store.videos.values()]
      .sort((a, b) => b.created_at.localeCompare(a.created_at))
      .slice(0, RECENT);
  }

  updated() {
    for (const video of this.recent) {
      if (video.published_run === null) continue;
      void pictureOf(video).then((key) => {
        if (key && this.keys.get(video.video_id) !== key) this.keys = new Map(this.keys).set(video.video_id, key);
      });
    }
  }

  render() {
    if (store.ready && !store.videos.size) {
      return html`<div class="first">
        <p>${t("start.empty")}</p>
        <a class="button solid" href="/library">${icon("upload")} ${t("start.upload")}</a>
      </div>`;
    }
    return html`
      <div class="examples">
        ${EXAMPLES.map(
          (key) =>
            html`<button
              class="chip"
              @click=${() => this.dispatchEvent(new CustomEvent("sf-ask", { detail: { query: t(key) } }))}
            >
              ${t(key)}
            </button>`,
        )}
      </div>
      <section class="recent" aria-labelledby="recent">
        <header>
          <h2 id="recent">${t("start.recent")}</h2>
          <a href="/library">${t("start.all")}</a>
        </header>
        <div class="videos">
          ${store.ready
            ? repeat(
                this.recent,
                (video) => video.video_id,
                (video) => this.#video(video),
              )
            : Array.from({ length: 5 }, () => html`<div class="frame skeleton"></div>`)}
        </div>
      </section>
    `;
  }

  /** @param {VideoStatus} video */
  #video(video) {
    const key = this.keys.get(video.video_id);
    const state = `start.state.${video.state}`;
    return html`<a class="video" href="/v/${video.video_id}">
      <span class="frame">
        ${key ? html`<img src=${picture(key)} alt="" loading="lazy" decoding="async" />` : icon("film")}
        ${video.duration_s ? html`<span class="length time">${time(video.duration_s)}</span>` : ""}
      </span>
      <div>
        <h3>${videoName(video)}</h3>
        ${known(state) ? html`<p>${t(state)}</p>` : html`<p>${t("start.scenes", { n: video.scenes })}</p>`}
      </div>
    </a>`;
  }
}

customElements.define("sf-start", SfStart);
