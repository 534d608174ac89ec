// Uploads a file with tus-js-client as a page does, resuming after every error:
//   node tus_upload.cjs MODULE ENDPOINT FILE VIDEO_ID
// Prints the offset after each chunk, then "done".
const fs = require("node:fs");
const [module_, endpoint, path, videoId] = process.argv.slice(2);
const tus = require(module_);

const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  chunkSize: 2 * 2 ** 20,
  uploadSize: fs.statSync(path).size,
  metadata: { filename: "from a page.mp4", video_id: videoId },
  retryDelays: Array(200).fill(200),
  onBeforeRequest: () => new Promise((resolve) => setTimeout(resolve, 100)),
  onChunkComplete: (_size, accepted) => console.log(accepted),
  onSuccess: () => console.log("done"),
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
});
upload.start();
