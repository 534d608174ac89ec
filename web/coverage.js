/**
 * Says in words what a search looked at and what it did not.
 */

import { known, t } from "./text.js";

/** @typedef {import("./types.js").SearchAnswer} SearchAnswer */

/**
 * Sentences for an answer's coverage.
 * @param {SearchAnswer} answer
 * @param {{image: string, like: string}} criteria
 * @returns {{looked: string, missing: string[]}}
 */
export function coverage(answer, criteria) {
  const { coverage: covered, degraded } = answer;
  const looked = [t("coverage.scenes", { n: covered.scenes })];
  if (covered.scenes && covered.with_words < covered.scenes) looked.push(t("coverage.words", { n: covered.with_words }));
  const missing = [];
  if (covered.videos_in_work) missing.push(t("coverage.work", { n: covered.videos_in_work }));
  if (covered.not_looked_at) missing.push(t("coverage.gaps", { n: covered.not_looked_at }));
  for (const { retriever, used, reason, scenes, weight } of covered.retrievers) {
    const name = `coverage.of.${retriever}`;
    if (!known(name)) continue;
    if (degraded[retriever]) {
      missing.push(t("coverage.degraded", { what: t(name), why: degraded[retriever] }));
    } else if (!used && reason && weight && concerns(retriever, answer, criteria)) {
      missing.push(t("coverage.off", { what: t(name), why: reason.replace(/^\w+: /, "") }));
    } else if (used && scenes !== null && scenes < covered.scenes && (retriever === "text" || retriever === "vision")) {
      missing.push(t("coverage.part", { what: t(name), n: covered.scenes - scenes }));
    }
  }
  if (answer.truncated) missing.push(t("coverage.truncated", { setting: answer.truncated }));
  if (answer.left_out && !answer.hits.length) missing.push(t("coverage.left_out", { n: answer.left_out }));
  if (degraded.rerank) missing.push(t("coverage.rerank", { why: degraded.rerank }));
  return { looked: looked.join(""), missing };
}

/**
 * Whether it matters that a retriever was not used: none compares words where none were asked for.
 * @param {string} retriever
 * @param {SearchAnswer} answer
 * @param {{image: string, like: string}} criteria
 */
function concerns(retriever, answer, { image, like }) {
  if (retriever === "vision") return Boolean(answer.query || image || like);
  if (retriever === "text") return Boolean(answer.query || like);
  return retriever !== "lexical" && Boolean(answer.query);
}
