/**
 * The session: who asks, the videos as the API tells of them, and whether the fleet can be reached. It recovers by itself:
 * the stream of events is opened again, and continues where it broke.
 *
 * Elements take part with `new Watch(this)`: they render again after each change.
 */

import { address, ask, traffic } from "./api.js";
import { t } from "./text.js";

/** @typedef {import("./types.js").VideoStatus} VideoStatus */
/** @typedef {import("./types.js").Me} Me */
/** @typedef {import("./types.js").Health} Health */

/** What the browser's storage remembers of uploads begins with this. */
export const UPLOAD = "upload:";
const CALM_MS = 10_000;
const TROUBLED_MS = 2_000;

/**
 * Emits `change` after anything here has changed, and `people` when people of the user have.
 */
class Store extends EventTarget {
  /** @type {Me | null} */
  me = null;
  /** @type {Map<string, VideoStatus>} By id; complete for videos in work. */
  videos = new Map();
  /** The first snapshot has come: an empty `videos` means that there are none. */
  ready = false;
  /** @type {"api" | "redis" | "storage" | "search" | null} What is away; null: nothing. */
  away = null;
  /** The API wants to know who asks: nothing is asked until `signIn`. */
  signedOut = false;
  /** @type {EventSource | null} */
  #events = null;
  #reopen = 0;
  #delay = 1_000;
  #health = 0;
  #checking = false;
  /** @type {Map<string, Promise<VideoStatus | null>>} */
  #asked = new Map();

  /** Begin; called once. */
  start() {
    void this.#introduce();
    this.#listen();
    void this.check();
    traffic.addEventListener("answer", (event) => {
      const { away: failed, status } = /** @type {CustomEvent<{away: boolean, status: number}>} */ (event).detail;
      if (status === 401) this.refused();
      if (failed !== (this.away !== null)) this.#soon(failed ? 200 : 0);
    });
    addEventListener("online", () => this.#soon(0));
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#soon(0);
    });
  }

  /**
   * A video by id, asked for if the stream has not told of it; null if there is none.
   * @param {string} id
   * @returns {Promise<VideoStatus | null>}
   */
  async video(id) {
    const found = this.videos.get(id);
    if (found) return found;
    let asked = this.#asked.get(id);
    if (!asked) {
      asked = ask(`/videos/${encodeURIComponent(id)}`).then(
        (status) => {
          this.put(/** @type {VideoStatus} */ (status));
          return /** @type {VideoStatus} */ (status);
        },
        () => null,
      );
      this.#asked.set(id, asked);
      void asked.finally(() => this.#asked.delete(id));
    }
    return asked;
  }

  /**
   * Take in a video's status, as an answer to a change has it.
   * @param {VideoStatus} status
   */
  put(status) {
    if (status.state === "deleted") this.videos.delete(status.video_id);
    else this.videos.set(status.video_id, status);
    this.#changed();
  }

  /** The API has refused a request because nothing says who asks. */
  refused() {
    if (this.signedOut) return;
    this.signedOut = true;
    clearTimeout(this.#reopen);
    this.#events?.close();
    this.#changed();
  }

  /**
   * Let this browser ask with an API key, and go on where it was refused.
   * @param {string} key
   * @throws {Error} the key is not valid, or the browser has not kept it
   */
  async signIn(key) {
    await ask("/session", { body: { key } });
    const before = this.me;
    this.signedOut = false;
    await this.#introduce();
    if (this.signedOut) throw new Error(t("sign_in.not_kept"));
    // What is shown and remembered here is another user's.
    if (before && this.me && before.user_id !== this.me.user_id) return location.reload();
    this.#listen();
  }

  /** Let this browser forget the key, and everything that was shown with it. */
  async signOut() {
    await ask("/session", { method: "DELETE" });
    try {
      for (const name of Object.keys(localStorage)) if (name.startsWith(UPLOAD)) localStorage.removeItem(name);
    } catch {
      // Without storage nothing was remembered.
    }
    location.reload();
  }

  /** Ask who asks, until there is an answer. */
  async #introduce() {
    while (!this.signedOut) {
      try {
        this.me = await ask("/me");
        this.#changed();
        return;
      } catch {
        if (this.signedOut) return;
        await new Promise((resolve) => setTimeout(resolve, TROUBLED_MS));
      }
    }
  }

  #listen() {
    this.#events?.close();
    if (this.signedOut) return;
    const events = new EventSource(address("/events"));
    this.#events = events;
    events.addEventListener("open", () => {
      this.#delay = 1_000;
      if (this.away === "api") this.#soon(0);
    });
    events.addEventListener("snapshot", (event) => {
      this.videos = new Map();
      for (const status of JSON.parse(event.data).videos) this.videos.set(status.video_id, status);
      this.ready = true;
      this.#changed();
    });
    events.addEventListener("video", (event) => this.put(JSON.parse(event.data)));
    events.addEventListener("people", () => this.dispatchEvent(new Event("people")));
    events.addEventListener("error", () => {
      this.#soon(200);
      // A lost connection is opened again by the browser; a refused one is not, and may be a key that has ended.
      if (events.readyState !== EventSource.CLOSED || this.signedOut) return;
      clearTimeout(this.#reopen);
      this.#reopen = setTimeout(() => void this.#introduce().then(() => this.#listen()), this.#delay);
      this.#delay = Math.min(this.#delay * 2, 15_000);
    });
  }

  /** @param {number} ms */
  #soon(ms) {
    clearTimeout(this.#health);
    this.#health = setTimeout(() => void this.check(), ms);
  }

  /** Ask for the API's health now, and again after a while. */
  async check() {
    if (this.#checking) return;
    this.#checking = true;
    let away = /** @type {Store["away"]} */ (null);
    try {
      const response = await fetch(address("/health"), { cache: "no-store", signal: AbortSignal.timeout(5_000) });
      const health = /** @type {Partial<Health>} */ (await response.json().catch(() => ({})));
      if (health.redis === false) away = "redis";
      else if (health.storage === false) away = "storage";
      else if (!health.families) away = response.ok ? null : "api";
      else if (!health.families.includes("search")) away = "search";
    } catch {
      away = "api";
    } finally {
      this.#checking = false;
    }
    const back = this.away === "api" && away !== "api";
    if (this.away !== away) {
      this.away = away;
      this.#changed();
    }
    if (back && this.#events?.readyState !== EventSource.OPEN) this.#listen();
    this.#soon(away ? TROUBLED_MS : CALM_MS);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const store = new Store();

/** Renders its host again after each change of the store. */
export class Watch {
  /** @param {import("lit").LitElement} host */
  constructor(host) {
    this.host = host;
    this.update = () => host.requestUpdate();
    host.addController(this);
  }
  hostConnected() {
    store.addEventListener("change", this.update);
  }
  hostDisconnected() {
    store.removeEventListener("change", this.update);
  }
}
