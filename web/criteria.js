/**
 * What is searched for, as it stands in the address of the search view, and as the API takes it.
 */

/**
 * @typedef {object} Criteria
 * @property {string} q words
 * @property {string[]} people ids
 * @property {string[]} videos ids
 * @property {number | null} from seconds of the video
 * @property {number | null} to
 * @property {string[]} languages codes
 * @property {string} since a day, as 2026-01-31
 * @property {string} until the last day
 * @property {string} like id of a scene
 * @property {string} image key of a stored picture
 */

/**
 * @param {URLSearchParams} query
 * @returns {Criteria}
 */
export function readCriteria(query) {
  const several = (/** @type {string} */ name) => (query.get(name) ?? "").split(",").filter(Boolean);
  const seconds = (/** @type {string} */ name) => {
    const value = Number.parseFloat(query.get(name) ?? "");
    return Number.isFinite(value) && value >= 0 ? value : null;
  };
  const day = (/** @type {string} */ name) => /^\d{4}-\d\d-\d\d$/.exec(query.get(name) ?? "")?.[0] ?? "";
  return {
    q: (query.get("q") ?? "").slice(0, 1000),
    people: several("people"),
    videos: several("video"),
    from: seconds("from"),
    to: seconds("to"),
    languages: several("lang"),
    since: day("since"),
    until: day("until"),
    like: query.get("like") ?? "",
    image: query.get("image") ?? "",
  };
}

/**
 * The address of a search.
 * @param {Criteria} criteria
 */
export function writeCriteria(criteria) {
  const query = new URLSearchParams();
  const put = (/** @type {string} */ name, /** @type {string | number | null} */ value) => {
    if (value !== "" && value !== null) query.set(name, String(value));
  };
  put("q", criteria.q.trim());
  put("people", criteria.people.join(","));
  put("video", criteria.videos.join(","));
  put("from", criteria.from);
  put("to", criteria.to);
  put("lang", criteria.languages.join(","));
  put("since", criteria.since);
  put("until", criteria.until);
  put("like", criteria.like);
  put("image", criteria.image);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

/**
 * Whether there is anything to search for: filters alone find nothing, people do.
 * @param {Criteria} criteria
 */
export function asks(criteria) {
  return Boolean(criteria.q.trim() || criteria.people.length || criteria.like || criteria.image);
}

/**
 * The number of filters that are set.
 * @param {Criteria} criteria
 */
export function filters(criteria) {
  const { people, videos, languages, from, to, since, until } = criteria;
  const spans = Number(from !== null || to !== null) + Number(Boolean(since || until));
  return people.length + videos.length + languages.length + spans;
}

/**
 * The body of POST /search.
 * @param {Criteria} criteria
 * @param {number} limit
 * @param {string | null} cursor
 */
export function searchBody(criteria, limit, cursor = null) {
  const { q, people, videos, from, to, languages, since, until, like, image } = criteria;
  return {
    limit,
    ...(q.trim() && { query: q.trim() }),
    ...(people.length && { persons: people }),
    ...(videos.length && { video_ids: videos }),
    ...(from !== null && { from_s: from }),
    ...(to !== null && { to_s: to }),
    ...(languages.length && { languages }),
    ...(since && { indexed_from: new Date(`${since}T00:00`).toISOString() }),
    ...(until && { indexed_to: dayAfter(until) }),
    ...(like && { like_scene: like }),
    ...(image && { image_key: image }),
    ...(cursor && { cursor }),
  };
}

/** @param {string} day */
function dayAfter(day) {
  const next = new Date(`${day}T00:00`);
  next.setDate(next.getDate() + 1);
  return next.toISOString();
}
