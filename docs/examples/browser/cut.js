// Runs an export of `dis-sam export --format onnx --dynamic` with onnxruntime-web, in WebAssembly.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

const MODEL = "dis_sam.onnx";
const LONGEST_SIDE = 2048; // larger pictures are reduced
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1; // threads need two HTTP headers

const element = (id) => document.getElementById(id);
const [photo, result] = [element("photo"), element("result")];
let picture = null; // ImageData
let box = null; // x0, y0, x1, y1 in pixels, both ends included
let corner = null; // where a drag began

const say = (text) => (element("status").textContent = text);
const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

const session = await ort.InferenceSession.create(MODEL).catch((error) => {
  say(`The model ${MODEL} cannot be loaded: ${error.message}`);
  throw error;
});
say("Choose a picture.");
update();

function update() {
  element("cut").disabled = !picture;
}

element("file").addEventListener("change", async ({ target }) => {
  try {
    const bitmap = await createImageBitmap(target.files[0]); // upright, by its EXIF orientation
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    for (const canvas of [photo, result]) {
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    }
    const context = photo.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0, photo.width, photo.height);
    picture = context.getImageData(0, 0, photo.width, photo.height);
    box = null;
    element("save").disabled = true;
    say("Drag a box around an object.");
    update();
  } catch (error) {
    say(`The picture cannot be read: ${error.message}`);
  }
});

function position(event) {
  const area = photo.getBoundingClientRect();
  const inside = (value, length) => Math.min(Math.max(Math.floor(value), 0), length - 1);
  return [
    inside(((event.clientX - area.left) / area.width) * photo.width, photo.width),
    inside(((event.clientY - area.top) / area.height) * photo.height, photo.height),
  ];
}

photo.addEventListener("pointerdown", (event) => {
  if (!picture) return;
  photo.setPointerCapture(event.pointerId);
  corner = position(event);
});
photo.addEventListener("pointermove", (event) => {
  if (!corner) return;
  const [x, y] = position(event);
  box = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.max(x, corner[0]), Math.max(y, corner[1])];
  const context = photo.getContext("2d");
  context.putImageData(picture, 0, 0);
  context.lineWidth = Math.max(2, photo.width / 300);
  context.strokeStyle = "#e0322b";
  context.strokeRect(box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1);
});
photo.addEventListener("pointerup", () => (corner = null));

async function predict({ width, height, data }, box) {
  const pixels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    for (let channel = 0; channel < 3; channel++) pixels[to++] = data[from + channel];
  }
  const inputs = {
    image: new ort.Tensor("uint8", pixels, [height, width, 3]),
    mask: new ort.Tensor("uint8", new Uint8Array(width * height), [height, width]), // zeros: there is no mask
    box: new ort.Tensor("float32", new Float32Array(box ?? 4), [4]), // zeros: there is no box
  };
  let bytes;
  for (let pass = 0; pass < 2; pass++) { // the second pass refines the result of the first
    const given = Object.fromEntries(session.inputNames.map((name) => [name, inputs[name]]));
    const { alpha } = await session.run(given);
    bytes = Uint8Array.from(alpha.data, (value) => Math.round(255 * value));
    inputs.mask = new ort.Tensor("uint8", bytes, [height, width]);
  }
  return bytes;
}

element("cut").addEventListener("click", async () => {
  element("cut").disabled = true;
  say("Working …");
  await painted();
  try {
    const started = performance.now();
    const alpha = await predict(picture, box);
    const cut = new ImageData(new Uint8ClampedArray(picture.data), picture.width, picture.height);
    alpha.forEach((value, index) => (cut.data[4 * index + 3] = value));
    result.getContext("2d").putImageData(cut, 0, 0);
    element("save").disabled = false;
    say(`Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    say(`It failed: ${error.message}`);
  }
  update();
});

element("save").addEventListener("click", () => {
  result.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "cutout.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
});
