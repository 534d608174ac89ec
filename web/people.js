/**
 * Acts on people. Each is said in a toast that undoes it; the history keeps it after the toast has gone.
 */

import { ask } from "./api.js";
import { list, t } from "./text.js";
import { toast, toastError } from "./parts/toast.js";

/** @typedef {import("./types.js").Person} Person */
/** @typedef {import("./types.js").FaceView} FaceView */

/** Emits `change` after an act, so that lists are read again at once. */
export const acts = new EventTarget();

/** The API's limit of tracks in one request. */
const TRACKS = 64;

/**
 * Send the requests of one act, one after the other, and offer to undo what they did.
 * @param {string} said what was done
 * @param {{path: string, body: unknown, method?: string}[]} requests
 * @returns {Promise<Person | null>} the last answer; null if one was refused, which a toast says
 */
async function perform(said, requests) {
  /** @type {number[]} */
  const events = [];
  /** @type {Person | null} */
  let last = null;
  try {
    for (const { path, body, method = "POST" } of requests) {
      last = await patiently(() => ask(path, { method, body }));
      if (last?.event_id) events.unshift(last.event_id);
    }
    toast(said, events.length ? { action: t("action.undo"), onAction: () => void undo(events) } : {});
  } catch (error) {
    toastError(error);
    last = null;
  }
  acts.dispatchEvent(new Event("change"));
  return last;
}

/**
 * A merge of many faces goes on for a while, and another act on the same people is refused until it has ended.
 * @template T
 * @param {() => Promise<T>} request
 * @returns {Promise<T>}
 */
async function patiently(request) {
  for (let left = 10; ; left--) {
    try {
      return await request();
    } catch (error) {
      const moving = /** @type {any} */ (error).status === 409 && /being merged or split/.test(String(error));
      if (!moving || !left) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

/**
 * Undo changes, the latest first.
 * @param {number[]} events
 */
export async function undo(events) {
  try {
    for (const event of events) await patiently(() => ask(`/people/events/${event}/undo`, { method: "POST" }));
    toast(t("people.undone"), { kind: "good" });
  } catch (error) {
    toastError(error);
  }
  acts.dispatchEvent(new Event("change"));
}

/**
 * Make one person of several, who gets a name if one is given.
 * @param {Person[]} people the first one remains
 * @param {string} [name]
 */
export async function join(people, name) {
  const [into, ...others] = people;
  const requests = others.map((other) => ({ path: `/people/${other.person_id}/merge`, body: { into: into.person_id } }));
  if (name && name !== into.name) {
    return perform(t("people.named", { name }), [
      { path: `/people/${into.person_id}`, method: "PATCH", body: { name } },
      ...requests,
    ]);
  }
  return perform(t("people.merged", { names: list(others.map((other) => other.name).slice(0, 3)), into: into.name }), requests);
}

/**
 * @param {Person} person
 * @param {string} name
 */
export function rename(person, name) {
  return perform(t("people.named", { name }), [{ path: `/people/${person.person_id}`, method: "PATCH", body: { name } }]);
}

/**
 * Confirm or reject that faces are a person's.
 * @param {Person} person
 * @param {string[]} tracks
 * @param {boolean} is
 */
export function judge(person, tracks, is) {
  const requests = [];
  for (let at = 0; at < tracks.length; at += TRACKS) {
    const body = { track_ids: tracks.slice(at, at + TRACKS), is_person: is };
    requests.push({ path: `/people/${person.person_id}/judge`, body });
  }
  return perform(t(is ? "people.confirmed" : "people.rejected", { n: tracks.length, name: person.name }), requests);
}

/**
 * Move faces to a new person.
 * @param {Person} person
 * @param {string[]} tracks
 * @param {string | null} name null: the next free "unknown N"
 */
export function split(person, tracks, name) {
  return perform(t("people.split_off", { n: tracks.length, name: person.name }), [
    { path: `/people/${person.person_id}/split`, body: { track_ids: tracks.slice(0, TRACKS), name } },
  ]);
}

/**
 * The picture by which a person is known best: the largest face, else the face of a good photo.
 * @param {Person} person
 * @returns {Promise<{key: string, box: import("./types.js").Box} | null>}
 */
export function bestFace(person) {
  const name = `${person.person_id}/${person.scenes}/${person.good_photos}`;
  let found = best.get(name);
  if (!found) {
    found = findBest(person).catch(() => (best.delete(name), null));
    best.set(name, found);
  }
  return found;
}

/** @type {Map<string, Promise<{key: string, box: import("./types.js").Box} | null>>} */
const best = new Map();

/** @param {Person} person */
async function findBest(person) {
  if (person.scenes) {
    const { faces } = /** @type {import("./types.js").FacePage} */ (
      await ask(`/people/${person.person_id}/faces`, { query: { limit: 50 } })
    );
    const size = (/** @type {FaceView} */ face) => face.box[2] * face.box[3];
    const face = faces.reduce((most, one) => (size(one) > size(most) ? one : most), faces[0]);
    if (face) return { key: face.keyframe_key, box: face.box };
  }
  if (!person.photos) return null;
  const { photos } = /** @type {{photos: import("./types.js").PhotoView[]}} */ (await ask(`/people/${person.person_id}/photos`));
  const photo = photos.find(({ state, box }) => state === "good" && box);
  return photo?.box ? { key: photo.storage_key, box: photo.box } : null;
}

/**
 * Number of scenes and videos, in words.
 * @param {Person} person
 */
export function seenIn(person) {
  if (!person.scenes) return t("people.unseen");
  return t("people.seen", {
    moments: t("people.moments", { n: person.scenes }),
    videos: t("people.videos", { n: person.videos }),
  });
}
