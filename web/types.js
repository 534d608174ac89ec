/**
 * The shapes of the API's answers that the page reads: fields as in shared/contracts.
 *
 * @typedef {"uploaded" | "processing" | "indexed" | "partial" | "failed" | "cancelled" | "deleted"} VideoState
 * @typedef {{stage: string, state: string, parts: number, parts_done: number, progress: number,
 *   error_class: string | null, error: string | null, attempts: number, not_looked_at: number}} StageStatus
 * @typedef {{video_id: string, user_id: string, storage_key: string, state: VideoState, run: number,
 *   published_run: number | null, duration_s: number | null, scenes: number, error_class: string | null,
 *   error: string | null, created_at: string, indexed_at: string | null, stages: StageStatus[]}} VideoStatus
 * @typedef {{user_id: string, operator: boolean, how: string, storage: "local" | "s3", profile: string,
 *   max_video_bytes: number, tus: string, version: string}} Me
 * @typedef {{status: "ok" | "degraded", redis: boolean, storage: boolean, families: string[]}} Health
 *
 * @typedef {"text" | "vision" | "lexical" | "keyword" | "screen" | "people"} Retriever
 * @typedef {[number, number, number, number]} Box
 * @typedef {{ordinal: number, key: string, url: string | null, similarity: number}} KeyframeMatch
 * @typedef {{text: string, ordinal: number, box: Box}} ScreenMatch
 * @typedef {{person_id: string, name: string, confidence: number, frame_count: number, ordinal: number | null,
 *   box: Box | null}} PersonMatch
 * @typedef {{words: {start: number, end: number}[], keyframe: KeyframeMatch | null, screen: ScreenMatch[],
 *   people: PersonMatch[]}} Highlights
 * @typedef {{scene_id: string, video_id: string, idx: number, start_s: number, end_s: number, transcript: string,
 *   score: number, keyframe_keys: string[], language: string | null, similarities: Partial<Record<Retriever, number>>,
 *   rerank_score: number | null, highlights: Highlights, keyframe_urls: string[] | null}} SearchHit
 * @typedef {{retriever: Retriever, used: boolean, reason: string | null, model: string | null, scenes: number | null,
 *   weight: number}} RetrieverCoverage
 * @typedef {{scenes: number, with_words: number, with_vectors: number | null, videos_in_work: number,
 *   not_looked_at: number, retrievers: RetrieverCoverage[]}} Coverage
 * @typedef {{query: string | null, mode: string, model: string | null, hits: SearchHit[], coverage: Coverage,
 *   degraded: Record<string, string>, next_cursor: string | null, left_out: number, truncated: string | null}} SearchAnswer
 *
 * @typedef {{person_id: string, user_id: string, name: string, kind: "named" | "unknown", state: string,
 *   progress: number, photos: number, good_photos: number, scenes: number, videos: number,
 *   created_at: string}} PersonView
 *
 * @typedef {{start_s: number, end_s: number, text: string, words: {start_s: number, end_s: number, text: string}[]}} Segment
 * @typedef {{person_id: string | null, name: string | null, track_id: string, start_s: number, end_s: number}} Appearance
 * @typedef {{scene_id: string, idx: number, start_s: number, end_s: number,
 *   keyframes: {key: string, ts_s: number, width: number, height: number}[], segments: Segment[], people: Appearance[],
 *   screen: {text: string, ts_s: number}[]}} TimelineScene
 * @typedef {{video_id: string, duration_s: number | null, media: {playable: "original" | "rendition" | "none",
 *   reason: string | null, width_px: number | null, height_px: number | null}, sprites: boolean,
 *   scenes: TimelineScene[], next_after_idx: number | null}} TimelinePage
 */

/**
 * People and the fleet.
 *
 * @typedef {PersonView & {receipt: Receipt | null, event_id: number | null, accepted: boolean}} Person
 * @typedef {{state?: string, removed?: Record<string, number>, left?: Record<string, number>, sweep_due?: string,
 *   erased_with?: string}} Receipt
 * @typedef {{people: Person[], next_after: string | null}} PeoplePage
 * @typedef {{track_id: string, video_id: string, scene_id: string, idx: number, ts_s: number, keyframe_key: string,
 *   box: Box, faces: number, similarity: number | null, decided_by: "machine" | "human" | null}} FaceView
 * @typedef {{person_id: string, faces: FaceView[], next_after: string | null}} FacePage
 * @typedef {{photo_id: string, person_id: string, storage_key: string, state: string, error_class: string | null,
 *   error: string | null, box: Box | null, quality: number | null}} PhotoView
 * @typedef {{event_id: number, kind: string, person_id: string | null, name: string | null, other_id: string | null,
 *   other: string | null, old_name: string | null, new_name: string | null, faces: number | null, video_ids: string[],
 *   undoes: number | null, undone_by: number | null, created_at: string}} EventView
 * @typedef {{from_model: string, to_model: string, state: "building" | "ready" | "activated" | "discarding",
 *   total: number, done: number, failed: number, error: string | null, scenes_per_s: number | null,
 *   eta_s: number | null, created_at: string, ready_at: string | null, activated_at: string | null}} SwitchView
 * @typedef {{kind: "text" | "vision", active: string | null, scenes: number, switch: SwitchView | null}} ModelsState
 * @typedef {{nodes: {name: string, family: string, state: string, error: string, models: string[]}[],
 *   queues: {queue: string, waiting: number, running: number, deferred: number, oldest_s: number | null,
 *   done_last_minute: number, failed: number}[],
 *   failures: {error_class: string, count: number, videos: number, user_id: string, video_id: string | null,
 *   stage: string, error: string | null, failed_at: string | null}[], models: ModelsState[]}} FleetState
 */

export {};
