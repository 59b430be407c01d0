// What the JavaScript client does with a repository: node hub_client.mjs MODULE HUB TOKEN REPO
// Prints the hashes of all files, after it has pushed a file of its own as a second commit.
import { createHash } from "node:crypto";

const [module, hubUrl, accessToken, name] = process.argv.slice(2);
const { createRepo, downloadFile, fileExists, listFiles, modelInfo, uploadFiles } =
  await import(module);
const common = { repo: { type: "model", name }, hubUrl, accessToken };

const made = { ...common, repo: { type: "model", name: `${name}-js` } };
await createRepo(made);
const content = new Blob([Buffer.alloc(3_000_000, 7)]);
const files = [{ path: "model.safetensors", content }, { path: "README.md", content: new Blob(["# js"]) }];
await uploadFiles({ ...made, useXet: false, files, commitTitle: "from JavaScript" });

const hashes = {};
for await (const file of listFiles({ ...common, recursive: true })) {
  if (file.type !== "file") continue;
  const blob = await downloadFile({ ...common, path: file.path, xet: false });
  const bytes = Buffer.from(await blob.arrayBuffer());
  hashes[file.path] = createHash("sha256").update(bytes).digest("hex");
}
const { sha } = await modelInfo({ name, hubUrl, accessToken, additionalFields: ["sha"] });
const exists = await fileExists({ ...common, path: "ensemble.json" });
const missing = await fileExists({ ...common, path: "nothing.json" });
console.log(JSON.stringify({ hashes, sha, exists, missing }));
