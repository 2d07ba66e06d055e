// Draws a picture on the canvas: what is seen where, at which zoom.

export const COLORS = ['#00b8d9', '#ff8b00', '#36b37e', '#ff5f8a', '#8777ff', '#ffc400'];
const VEIL = 'rgb(12 15 18 / 64%)';
const MASK_COLOR = 'rgb(255 0 140 / 50%)';
const MAX_SCALE = 64;
const GRID_FROM = 14;  // CSS pixels per pixel of the photograph, from which on the pixels' borders are drawn

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.layer = document.createElement('canvas').getContext('2d');
    this.part = document.createElement('canvas').getContext('2d');
    this.picture = null;
    this.mode = 'highlight';
    this.background = { kind: 'checker', color: '#ffffff', bitmap: null };
    this.split = 0.5;        // of the stage's width, where before meets after
    this.draft = null;       // {id, box} that is being drawn
    this.mask = null;        // MaskCanvas that is shown while the brush is used
    this.brush = null;       // {x, y, diameter} of the brush's outline
    this.crosshair = null;   // [x, y], for the keyboard
    this.width = this.height = 0;
    this.dpr = 1;
    this.onresize = () => {};
    this.scheduled = false;
    new ResizeObserver(() => this.#resize()).observe(canvas.parentElement);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  #resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    const centered = this.picture?.view && [this.width / 2, this.height / 2];
    const middle = centered && this.toPicture(...centered);
    const fitted = centered && this.isFitted();
    this.dpr = devicePixelRatio || 1;
    this.width = clientWidth;
    this.height = clientHeight;
    for (const canvas of [this.canvas, this.layer.canvas, this.part.canvas]) {
      canvas.width = Math.max(1, Math.round(clientWidth * this.dpr));
      canvas.height = Math.max(1, Math.round(clientHeight * this.dpr));
    }
    if (centered && fitted) this.fit();
    else if (centered) this.#moveTo(middle, [this.width / 2, this.height / 2]);
    this.onresize();
    this.render();  // at once: the canvas is empty now
  }

  show(picture) {
    this.picture = picture;
    this.draft = this.mask = this.brush = this.crosshair = null;
    if (picture && !picture.view) this.fit();
    this.draw();
  }

  // --- coordinates ---

  get scale() { return this.picture?.view?.scale ?? 1; }
  toPicture(x, y) { const { scale, left, top } = this.picture.view; return [(x - left) / scale, (y - top) / scale]; }
  toScreen(x, y) { const { scale, left, top } = this.picture.view; return [x * scale + left, y * scale + top]; }

  /** Return the pixel under a point of the screen, inside the picture. */
  pixelAt(x, y) {
    const [u, v] = this.toPicture(x, y);
    return [clamp(Math.floor(u), 0, this.picture.width - 1), clamp(Math.floor(v), 0, this.picture.height - 1)];
  }

  #fitScale() {
    const margin = Math.min(36, this.width * 0.04);
    return Math.min((this.width - 2 * margin) / this.picture.width, (this.height - 2 * margin) / this.picture.height, 4);
  }

  isFitted() {
    const { scale, left } = this.picture.view;
    return Math.abs(scale / this.#fitScale() - 1) < 1e-6 && Math.abs(left - (this.width - this.picture.width * scale) / 2) < 1;
  }

  fit() {
    if (!this.width) this.#measure();
    const scale = Math.max(this.#fitScale(), 1e-4);
    const { width, height } = this.picture;
    this.picture.view = { scale, left: (this.width - width * scale) / 2, top: (this.height - height * scale) / 2 };
    this.draw();
  }

  #measure() {  // before the first layout has been observed
    this.width = this.canvas.parentElement.clientWidth;
    this.height = this.canvas.parentElement.clientHeight;
  }

  #moveTo([u, v], [x, y]) {
    const { view } = this.picture;
    view.left = x - u * view.scale;
    view.top = y - v * view.scale;
    this.#keepInSight();
    this.draw();
  }

  /** Zoom by a factor; the point (x, y) of the screen stays where it is. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const fixed = this.toPicture(x, y);
    const smallest = Math.min(this.#fitScale() / 2, 1);
    this.picture.view.scale = clamp(this.scale * factor, smallest, MAX_SCALE);
    this.#moveTo(fixed, [x, y]);
  }

  pan(dx, dy) {
    this.picture.view.left += dx;
    this.picture.view.top += dy;
    this.#keepInSight();
    this.draw();
  }

  #keepInSight() {
    const { view, width, height } = this.picture;
    const edge = 60;
    view.left = clamp(view.left, edge - width * view.scale, this.width - edge);
    view.top = clamp(view.top, edge - height * view.scale, this.height - edge);
  }

  /** Move the picture so that a pixel is in sight. */
  reveal(u, v) {
    const [x, y] = this.toScreen(u + 0.5, v + 0.5);
    const dx = clamp(x, 40, this.width - 40) - x, dy = clamp(y, 40, this.height - 40) - y;
    if (dx || dy) this.pan(dx, dy);
  }

  // --- drawing ---

  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => { this.scheduled = false; this.render(); });
  }

  render() {
    const { context, picture } = this;
    reset(context);
    if (!picture?.photo || !picture.view) return;
    const { scale, left, top } = picture.view;
    Object.assign(this.canvas.dataset, { scale, left, top });  // tests and scripts find their way with these
    this.#toPictureSpace(context);
    const mode = this.mask && this.mode !== 'alpha' ? 'highlight' : this.mode;
    const empty = picture.objects.length === 0;
    if (mode === 'alpha') this.#alpha(context);
    else if (mode === 'cutout' && !empty) this.#cutout(context);
    else if (mode === 'compare' && !empty) this.#compare(context);
    else this.#highlight(context, this.mask !== null);
    if (this.mask) this.#drawMask(context);
    this.#grid(context);
    if (mode === 'highlight' || this.draft) this.#prompts(context);
    this.#cursors(context);
  }

  #toPictureSpace(context) {
    const { scale, left, top } = this.picture.view;
    context.setTransform(this.dpr * scale, 0, 0, this.dpr * scale, this.dpr * left, this.dpr * top);
  }

  /** Prepare the extra layer: the mattes of all objects, in white. */
  #mattes() {
    const { layer } = this;
    reset(layer);
    this.#toPictureSpace(layer);
    for (const { layer: matte } of this.picture.shown.values()) matte.draw(layer, this.scale * this.dpr);
    return layer;
  }

  /** Put the extra layer on the canvas. */
  #flatten(context) {
    context.save();
    context.resetTransform();
    context.imageSmoothingEnabled = false;
    context.drawImage(this.layer.canvas, 0, 0);
    context.restore();
  }

  #photo(context) { this.picture.photo.draw(context, this.scale * this.dpr); }

  #highlight(context, noVeil) {
    this.#photo(context);
    if (noVeil || this.picture.shown.size === 0) return;
    const layer = this.#mattes();
    layer.globalCompositeOperation = 'source-out';
    layer.fillStyle = VEIL;
    layer.fillRect(0, 0, this.picture.width, this.picture.height);
    this.#flatten(context);
  }

  #alpha(context) {
    context.fillStyle = '#000';
    context.fillRect(0, 0, this.picture.width, this.picture.height);
    this.#mattes();
    this.#flatten(context);
  }

  #cutout(context) {
    this.#drawBackground(context);
    const { layer, part } = this;
    const scale = this.scale * this.dpr;
    reset(layer);
    for (const { layer: matte, colors } of this.picture.shown.values()) {
      reset(part);
      this.#toPictureSpace(part);
      matte.draw(part, scale);
      part.globalCompositeOperation = 'source-in';
      (colors ?? this.picture.photo).draw(part, scale);
      layer.drawImage(part.canvas, 0, 0);
    }
    this.#flatten(context);
  }

  #compare(context) {
    this.#photo(context);
    context.save();
    context.resetTransform();
    context.beginPath();
    context.rect(this.split * this.canvas.width, 0, this.canvas.width, this.canvas.height);
    context.clip();
    this.#toPictureSpace(context);
    this.#cutout(context);
    context.restore();
  }

  #drawBackground(context) {
    const { width, height } = this.picture;
    const { kind, color, bitmap } = this.background;
    if (kind === 'picture' && bitmap) {
      drawCover(context, bitmap, width, height);
      return;
    }
    context.fillStyle = kind === 'color' ? color : this.#checker(context);
    context.fillRect(0, 0, width, height);
  }

  #checker(context) {
    const style = getComputedStyle(document.documentElement);
    const size = Math.round(10 * this.dpr);
    const tile = document.createElement('canvas');
    tile.width = tile.height = 2 * size;
    const painter = tile.getContext('2d');
    painter.fillStyle = style.getPropertyValue('--check-a');
    painter.fillRect(0, 0, 2 * size, 2 * size);
    painter.fillStyle = style.getPropertyValue('--check-b');
    painter.fillRect(0, 0, size, size);
    painter.fillRect(size, size, size, size);
    const pattern = context.createPattern(tile, 'repeat');
    pattern.setTransform(context.getTransform().inverse());  // squares of one size at every zoom
    return pattern;
  }

  #drawMask(context) {
    const { layer, picture } = this;
    reset(layer);
    this.#toPictureSpace(layer);
    layer.imageSmoothingEnabled = this.scale * this.dpr < 2;
    layer.drawImage(this.mask.canvas, 0, 0, picture.width, picture.height);
    layer.globalCompositeOperation = 'source-in';
    layer.fillStyle = MASK_COLOR;
    layer.fillRect(0, 0, picture.width, picture.height);
    this.#flatten(context);
  }

  #grid(context) {
    const { scale, left, top } = this.picture.view;
    if (scale < GRID_FROM) return;
    const [x0, y0] = this.pixelAt(0, 0), [x1, y1] = this.pixelAt(this.width, this.height);
    context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
    context.beginPath();
    for (let x = x0; x <= x1 + 1; x++) { context.moveTo(x * scale + left, y0 * scale + top); context.lineTo(x * scale + left, (y1 + 1) * scale + top); }
    for (let y = y0; y <= y1 + 1; y++) { context.moveTo(x0 * scale + left, y * scale + top); context.lineTo((x1 + 1) * scale + left, y * scale + top); }
    context.lineWidth = 1 / this.dpr;
    context.strokeStyle = 'rgb(128 128 128 / 40%)';
    context.stroke();
  }

  #prompts(context) {
    const { picture } = this;
    context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
    picture.objects.forEach((object, index) => {
      const active = object.id === picture.active;
      const color = COLORS[index % COLORS.length];
      const box = this.draft?.id === object.id ? this.draft.box : object.mask ? null : object.box;
      if (box) this.#box(context, box, color, active);
      if (object.mask) return;
      for (const [x, y, label] of object.points) this.#point(context, x, y, label, active);
    });
    if (this.draft && this.draft.id === null) this.#box(context, this.draft.box, COLORS[picture.objects.length % COLORS.length], true);
  }

  /** Return a box on the screen: [left, top, width, height]. The box covers the pixels at both of its ends. */
  boxOnScreen([x0, y0, x1, y1]) {
    const [left, top] = this.toScreen(x0, y0), [right, bottom] = this.toScreen(x1 + 1, y1 + 1);
    return [left, top, right - left, bottom - top];
  }

  #box(context, box, color, active) {
    const [x, y, width, height] = this.boxOnScreen(box);
    context.lineJoin = 'round';
    context.strokeStyle = 'rgb(0 0 0 / 55%)';
    context.lineWidth = active ? 4 : 3;
    context.strokeRect(x, y, width, height);
    context.strokeStyle = color;
    context.lineWidth = active ? 2 : 1.5;
    context.setLineDash(active ? [] : [6, 5]);
    context.strokeRect(x, y, width, height);
    context.setLineDash([]);
    if (!active) return;
    for (const [hx, hy] of handles([x, y, width, height])) {
      context.beginPath();
      context.arc(hx, hy, 5, 0, 2 * Math.PI);
      context.fillStyle = '#fff';
      context.fill();
      context.strokeStyle = color;
      context.lineWidth = 2;
      context.stroke();
    }
  }

  #point(context, u, v, label, active) {
    const [x, y] = this.toScreen(u + 0.5, v + 0.5);
    context.beginPath();
    context.arc(x, y, active ? 8 : 6, 0, 2 * Math.PI);
    context.fillStyle = label ? '#137a43' : '#b3261e';
    context.fill();
    context.strokeStyle = '#fff';
    context.lineWidth = 2;
    context.stroke();
    context.beginPath();
    context.moveTo(x - 3.5, y);
    context.lineTo(x + 3.5, y);
    if (label) { context.moveTo(x, y - 3.5); context.lineTo(x, y + 3.5); }
    context.stroke();
  }

  #cursors(context) {
    context.setTransform(this.dpr, 0, 0, this.dpr, 0, 0);
    if (this.brush) {
      context.beginPath();
      context.arc(this.brush.x, this.brush.y, Math.max((this.brush.diameter * this.scale) / 2, 1.5), 0, 2 * Math.PI);
      context.strokeStyle = 'rgb(0 0 0 / 70%)';
      context.lineWidth = 3;
      context.stroke();
      context.strokeStyle = '#fff';
      context.lineWidth = 1.3;
      context.stroke();
    }
    if (this.crosshair) {
      const [x, y] = this.toScreen(this.crosshair[0] + 0.5, this.crosshair[1] + 0.5);
      for (const [color, width] of [['rgb(0 0 0 / 70%)', 4], ['#fff', 1.6]]) {
        context.beginPath();
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          context.moveTo(x + 5 * dx, y + 5 * dy);
          context.lineTo(x + 19 * dx, y + 19 * dy);
        }
        context.strokeStyle = color;
        context.lineWidth = width;
        context.stroke();
      }
    }
  }
}

/** Corners and middles of the sides, in the order of the compass: nw n ne e se s sw w. */
export function handles([x, y, width, height]) {
  const [cx, cy, right, bottom] = [x + width / 2, y + height / 2, x + width, y + height];
  return [[x, y], [cx, y], [right, y], [right, cy], [right, bottom], [cx, bottom], [x, bottom], [x, cy]];
}

export function clamp(value, low, high) { return Math.min(Math.max(value, low), Math.max(low, high)); }

/** Draw a picture so that it covers a rectangle. */
export function drawCover(context, bitmap, width, height) {
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [width / scale, height / scale];
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, (bitmap.width - w) / 2, (bitmap.height - h) / 2, w, h, 0, 0, width, height);
}

function reset(context) {
  context.resetTransform();
  context.globalCompositeOperation = 'source-over';
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
}

/** Draw a thumbnail of a picture's cut-out, or of the photograph if there is none yet. */
export function drawThumbnail(canvas, picture, object = null) {
  const context = canvas.getContext('2d');
  const layers = object ? [picture.shown.get(object.id)?.layer] : [...picture.shown.values()].map(({ layer }) => layer);
  const mattes = layers.filter(Boolean);
  const [x, y, width, height] = object && mattes.length ? mattes[0].area : [0, 0, picture.width, picture.height];
  const scale = object
    ? Math.min(canvas.width / width, canvas.height / height) * 0.94
    : Math.max(canvas.width / width, canvas.height / height);
  const place = (target) => target.setTransform(scale, 0, 0, scale, canvas.width / 2 - (x + width / 2) * scale, canvas.height / 2 - (y + height / 2) * scale);
  reset(context);
  if (mattes.length === 0) {
    place(context);
    picture.photo.draw(context, scale);
    return;
  }
  const style = getComputedStyle(document.documentElement);
  for (let row = 0; row * 8 < canvas.height; row++) {
    for (let column = 0; column * 8 < canvas.width; column++) {
      context.fillStyle = style.getPropertyValue((row + column) % 2 ? '--check-a' : '--check-b');
      context.fillRect(column * 8, row * 8, 8, 8);
    }
  }
  const cut = document.createElement('canvas').getContext('2d');
  cut.canvas.width = canvas.width;
  cut.canvas.height = canvas.height;
  place(cut);
  for (const matte of mattes) matte.draw(cut, scale);
  cut.globalCompositeOperation = 'source-in';
  picture.photo.draw(cut, scale);
  context.drawImage(cut.canvas, 0, 0);
}
