/**
 * Videos to be deleted: for ten seconds a click takes it back; then, or when the page is left, the API is asked.
 */

import { address, ask } from "./api.js";
import { t } from "./text.js";
import { toast } from "./parts/toast.js";

const UNDO_S = 10;

/** Emits `change`. */
class Deletions extends EventTarget {
  /** @type {Map<string, {timer: number, close: () => void}>} Waiting, by the video's id. */
  #waiting = new Map();
  /** @type {Set<string>} Asked for. */
  #sent = new Set();

  constructor() {
    super();
    addEventListener("pagehide", () => {
      for (const id of this.#waiting.keys()) {
        this.#take(id);
        this.#sent.add(id);
        void fetch(address(`/videos/${id}`), { method: "DELETE", keepalive: true });
      }
    });
  }

  /**
   * Whether a list leaves the video out.
   * @param {string} id
   */
  has(id) {
    return this.#waiting.has(id) || this.#sent.has(id);
  }

  /**
   * @param {string} id
   * @param {string} name
   */
  add(id, name) {
    const timer = setTimeout(() => void this.#send(id, name), UNDO_S * 1000);
    const close = toast(t("library.deleted", { name }), {
      seconds: UNDO_S,
      action: t("action.undo"),
      onAction: () => {
        this.#take(id);
        this.#changed();
      },
    });
    this.#waiting.set(id, { timer, close });
    this.#changed();
  }

  /** @param {string} id */
  #take(id) {
    const waiting = this.#waiting.get(id);
    clearTimeout(waiting?.timer);
    waiting?.close();
    this.#waiting.delete(id);
  }

  /**
   * @param {string} id
   * @param {string} name
   */
  async #send(id, name) {
    this.#take(id);
    this.#sent.add(id);
    try {
      await ask(`/videos/${id}`, { method: "DELETE", retry: true });
    } catch (error) {
      this.#sent.delete(id);
      toast(t("library.delete_failed", { name, reason: error instanceof Error ? error.message : "" }), { kind: "bad" });
      this.#changed();
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const deletions = new Deletions();
