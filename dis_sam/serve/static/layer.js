// Pictures as they are drawn: at full size for looking closely, and reduced for everything else.

const SMALL = 2048;

/** A bitmap that covers a rectangle of the photograph, with a reduced copy if it is large. */
export class Layer {
  constructor(bitmap, small, area) {
    this.bitmap = bitmap;
    this.small = small;
    this.area = area;  // [left, top, width, height] in pixels of the photograph
  }

  static async from(blob, area) {
    const bitmap = await createImageBitmap(blob);
    const longest = Math.max(bitmap.width, bitmap.height);
    let small = null;
    if (longest > SMALL * 1.3) {
      const [width, height] = [bitmap.width, bitmap.height].map((n) => Math.max(1, Math.round((n * SMALL) / longest)));
      small = await createImageBitmap(bitmap, { resizeWidth: width, resizeHeight: height, resizeQuality: 'high' });
    }
    return new Layer(bitmap, small, area ?? [0, 0, bitmap.width, bitmap.height]);
  }

  /** Draw in pixels of the photograph; `scale` is how many device pixels one of them takes. */
  draw(context, scale) {
    const [x, y, width, height] = this.area;
    const reduced = this.small && scale * width <= this.small.width;
    context.imageSmoothingEnabled = scale < 2;
    context.imageSmoothingQuality = 'high';
    context.drawImage(reduced ? this.small : this.bitmap, x, y, width, height);
  }

  close() {
    this.bitmap.close();
    this.small?.close();
  }
}

/** The coarse mask under the brush: a canvas, reduced for large photographs, because the network reduces them too. */
export class MaskCanvas {
  constructor(width, height, longest = SMALL) {
    this.scale = Math.min(1, longest / Math.max(width, height));
    this.canvas = document.createElement('canvas');
    this.canvas.width = Math.max(1, Math.round(width * this.scale));
    this.canvas.height = Math.max(1, Math.round(height * this.scale));
    this.context = this.canvas.getContext('2d', { willReadFrequently: true });
    this.size = [width, height];
  }

  /** Take a picture as the mask: what is lighter than middle gray, or less transparent. */
  load(bitmap) {
    const { width, height } = this.canvas;
    this.context.globalCompositeOperation = 'copy';
    this.context.imageSmoothingQuality = 'high';
    this.context.drawImage(bitmap, 0, 0, width, height);
    this.context.globalCompositeOperation = 'source-over';
    const { data } = this.context.getImageData(0, 0, width, height);
    const bits = new Uint8Array(width * height);
    const single = isSingleColor(data);
    for (let i = 0, j = 0; i < bits.length; i++, j += 4) {
      bits[i] = single ? data[j + 3] > 127 : data[j] * 299 + data[j + 1] * 587 + data[j + 2] * 114 > 127000;
    }
    this.#put(bits);
  }

  #put(bits) {
    const pixels = this.context.createImageData(this.canvas.width, this.canvas.height);
    new Uint32Array(pixels.data.buffer).set(Uint32Array.from(bits, (bit) => (bit ? 0xffffffff : 0)));
    this.context.putImageData(pixels, 0, 0);
  }

  /** Draw a stroke of the brush, with coordinates and diameter in pixels of the photograph. */
  stroke(from, to, diameter, erase) {
    const { context, scale } = this;
    context.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
    context.strokeStyle = context.fillStyle = '#fff';
    context.lineWidth = Math.max(diameter * scale, 1);
    context.lineCap = context.lineJoin = 'round';
    context.beginPath();
    context.moveTo(from[0] * scale, from[1] * scale);
    context.lineTo(to[0] * scale + 0.001, to[1] * scale);  // a line without length is not drawn
    context.stroke();
    context.globalCompositeOperation = 'source-over';
  }

  #read() {
    const { width, height } = this.canvas;
    const data = this.context.getImageData(0, 0, width, height).data;
    const bits = new Uint8Array(width * height);
    for (let i = 0; i < bits.length; i++) bits[i] = data[4 * i + 3] > 127;
    return bits;
  }

  /** Return the mask packed for the history. */
  snapshot() {
    const bits = this.#read();
    const packed = new Uint8Array(Math.ceil(bits.length / 8));
    for (let i = 0; i < bits.length; i++) packed[i >> 3] |= bits[i] << (i & 7);
    return { id: crypto.randomUUID?.() ?? String(Math.random()), packed };
  }

  restore({ packed }) {
    const bits = new Uint8Array(this.canvas.width * this.canvas.height);
    for (let i = 0; i < bits.length; i++) bits[i] = (packed[i >> 3] >> (i & 7)) & 1;
    this.#put(bits);
  }

  /** Return the mask as a black and white PNG. */
  async toBlob() {
    this.#put(this.#read());  // hard edges
    const opaque = document.createElement('canvas');
    opaque.width = this.canvas.width;
    opaque.height = this.canvas.height;
    const context = opaque.getContext('2d', { alpha: false });
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => { opaque.toBlob(resolve, 'image/png'); });
  }
}

/** Whether a picture has one color and different transparencies: then these are the mask. */
function isSingleColor(data) {
  let color = -1, varies = false;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] !== data[3]) varies = true;
    if (data[i + 3] < 255) continue;  // partly transparent colors are not exact
    const found = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
    if (color === -1) color = found;
    else if (color !== found) return false;
  }
  return varies;
}
