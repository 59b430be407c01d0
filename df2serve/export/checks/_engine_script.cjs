// Run an ONNX model in onnxruntime-node: node _engine_script.cjs REQUEST
const fs = require("fs");
const path = require("path");

async function main() {
  const home = path.dirname(process.argv[2]);
  const request = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const ort = require(path.join(process.env.DF2SERVE_ENGINE, "node_modules", "onnxruntime-node"));
  const session = await ort.InferenceSession.create(request.model);
  const shapes = [];
  for (const [number, shape] of request.shapes.entries()) {
    const bytes = fs.readFileSync(path.join(home, `input-${number}.bin`));
    const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    const input = new ort.Tensor("float32", Float32Array.from(values), shape);
    const results = await session.run({ [session.inputNames[0]]: input });
    const outputs = session.outputNames.map((name) => results[name]);
    shapes.push(outputs.map((output) => output.dims));
    for (const [index, output] of outputs.entries()) {
      const data = Buffer.from(Float32Array.from(output.data, Number).buffer);
      fs.writeFileSync(path.join(home, `output-${number}-${index}.bin`), data);
    }
  }
  fs.writeFileSync(path.join(home, "answer.json"), JSON.stringify(shapes));
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
