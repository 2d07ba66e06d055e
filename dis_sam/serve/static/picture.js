// A photograph that is open: its objects, their history, and what the server made of them.

import { ApiError, call, upload } from './api.js';
import { Layer, MaskCanvas } from './layer.js';

const LIVE = 500;  // milliseconds: a model that is as fast as this follows a box while it is dragged
const HISTORY = 100;
const CACHED = 60;

/**
 * An object is never changed, but replaced by a changed copy: {id, box: [x0, y0, x1, y1] | null, points: [[x, y, label]],
 * mask: snapshot | null, whole: boolean}. Boxes are in pixels, and both ends belong to them.
 */
export const newObject = (content) => ({ id: crypto.randomUUID?.() ?? String(Math.random()), box: null, points: [], mask: null, whole: false, ...content });
const free = (shown) => { shown?.layer.close(); shown?.colors?.close(); };
const signature = (object) => (object.mask ? `mask ${object.mask.id}` : JSON.stringify([object.box, object.points]));

export class Picture {
  /** @param listener has changed(picture, what) and failed(picture, error); they are called after every change. */
  constructor(file, listener) {
    this.file = file;
    this.listener = listener;
    this.serverId = null;
    this.photo = null;   // Layer
    this.view = null;    // where the canvas shows it
    this.objects = [];
    this.active = null;  // id of the selected object
    this.shown = new Map();    // object id -> {sign, layer, score, colors}
    this.masks = new Map();    // object id -> {sign, mask: MaskCanvas}, for the brush
    this.thumbnail = null;
    this.past = [];
    this.future = [];
    this.closed = false;
    this.working = new Map();  // object id -> {sign, controller, done}
    this.cache = new Map();    // signature -> {key, score, area, blob}
    this.failures = new Map(); // object id -> signature that the server refused
    this.uploading = null;
    this.pace = Infinity;      // milliseconds that the latest result took
  }

  get activeObject() { return this.objects.find((object) => object.id === this.active) ?? null; }
  hasFailed(object) { return this.failures.get(object.id) === signature(object); }
  get busy() { return this.working.size > 0; }
  get ready() { return this.objects.length > 0 && this.objects.every((o) => this.shown.get(o.id)?.sign === signature(o)); }

  async open(progress = () => {}) {
    const answer = await upload(this.file, progress);
    Object.assign(this, { serverId: answer.id, name: answer.name, width: answer.width, height: answer.height });
    await this.#loadPhoto();
  }

  async #loadPhoto() {
    try {
      this.photo = await Layer.from(this.file);
    } catch { /* a format that the browser does not know */ }
    if (this.photo?.bitmap.width !== this.width || this.photo?.bitmap.height !== this.height) {
      this.photo?.close();
      this.photo = await Layer.from(await (await this.#ask('')).blob());
    }
  }

  /** Make a request about this picture; upload it again if the server has dropped it. */
  async #ask(path, options) {
    for (let attempt = 0; ; attempt++) {
      const id = this.serverId;
      try {
        return await call(`api/pictures/${id}${path}`, options);
      } catch (error) {
        if (error.status !== 404 || attempt > 0) throw error;
        await this.#uploadAgain(id);
      }
    }
  }

  async #uploadAgain(lost) {
    if (this.serverId !== lost) return;
    this.uploading ??= upload(this.file, () => {}).finally(() => { this.uploading = null; });
    this.serverId = (await this.uploading).id;
  }

  // --- changes ---

  /** Change the objects, so that it can be undone. `change` gets the objects and returns new ones. */
  commit(change, active = this.active) {
    this.past.push({ objects: this.objects, active: this.active });
    if (this.past.length > HISTORY) this.past.shift();
    this.future = [];
    this.#set(change(this.objects), active);
  }

  replace(object) { this.commit((objects) => objects.map((o) => (o.id === object.id ? object : o)), object.id); }
  add(object) { this.commit((objects) => [...objects, object], object.id); }
  remove(id) { this.commit((objects) => objects.filter((o) => o.id !== id), this.active === id ? null : this.active); }
  select(id) { this.active = id; this.listener.changed(this); }
  undo() { this.#travel(this.past, this.future); }
  redo() { this.#travel(this.future, this.past); }

  #travel(from, to) {
    const state = from.pop();
    if (!state) return;
    to.push({ objects: this.objects, active: this.active });
    this.#set(state.objects, state.active);
  }

  #set(objects, active) {
    this.objects = objects;
    this.active = objects.some((o) => o.id === active) ? active : null;
    this.refresh();
  }

  /** Request what changed objects look like; cancel what is no longer needed. */
  refresh() {
    for (const [id, { sign, controller }] of this.working) {
      const object = this.objects.find((o) => o.id === id);
      if (!object || signature(object) !== sign) {
        this.working.delete(id);
        controller.abort();
      }
    }
    for (const [id, shown] of this.shown) {
      if (this.objects.some((o) => o.id === id)) continue;
      free(shown);
      this.shown.delete(id);
    }
    for (const id of this.masks.keys()) if (!this.objects.some((o) => o.id === id)) this.masks.delete(id);
    for (const object of this.objects) {
      const sign = signature(object);
      if (this.shown.get(object.id)?.sign !== sign && !this.working.has(object.id) && !this.hasFailed(object)) {
        this.#work(object, sign);
      }
    }
    this.listener.changed(this);
  }

  /** Show what an object would look like, if that is fast; it ends with a change or with refresh(). */
  preview(object) {
    const sign = signature(object);
    if (this.pace > LIVE || this.working.has(object.id) || this.shown.get(object.id)?.sign === sign) return;
    this.#work(object, sign);
  }

  #work(object, sign) {
    const work = { sign, controller: new AbortController() };
    this.working.set(object.id, work);
    work.done = this.#show(object, work);
  }

  /** Segment an object and show it; settles without an error. */
  async #show(object, work) {
    const { sign, controller } = work;
    try {
      const found = await this.#segment(object, sign, controller.signal);
      const layer = await Layer.from(found.blob, found.area);
      if (this.working.get(object.id) !== work || this.closed) return layer.close();
      free(this.shown.get(object.id));
      this.shown.set(object.id, { sign, layer, score: found.score, colors: null });
      this.failures.delete(object.id);
      this.listener.changed(this, 'result');
    } catch (error) {
      if (error.name === 'AbortError' || error.status === 409 || this.working.get(object.id) !== work) return;
      this.failures.set(object.id, sign);
      this.listener.failed(this, error);
    } finally {
      if (this.working.get(object.id) === work) {
        this.working.delete(object.id);
        this.listener.changed(this);
      }
    }
  }

  async #segment(object, sign, signal) {
    const known = this.cache.get(sign);
    if (known) {
      this.cache.delete(sign);  // it becomes the latest
      this.cache.set(sign, known);
      return known;
    }
    const form = new FormData();
    form.append('slot', object.id);
    if (object.mask) {
      form.append('mask', await this.maskCanvas(object.mask).toBlob(), 'mask.png');
    } else {
      form.append('prompt', JSON.stringify({ box: object.box, points: object.points }));
    }
    const start = performance.now();
    const response = await this.#ask('/segment', { method: 'POST', body: form, signal });
    this.pace = performance.now() - start;
    const score = response.headers.get('X-Score');
    const found = {
      key: response.headers.get('X-Result'),
      score: score ? Number(score) : null,
      area: response.headers.get('X-Area').split(',').map(Number),
      blob: await response.blob(),
    };
    this.cache.set(sign, found);
    if (this.cache.size > CACHED) this.cache.delete(this.cache.keys().next().value);
    return found;
  }

  // --- the coarse mask ---

  maskCanvas(snapshot = null) {
    const mask = new MaskCanvas(this.width, this.height);
    if (snapshot) mask.restore(snapshot);
    return mask;
  }

  /** Return the canvas of an object's coarse mask as it is now, or null while it is not known yet. */
  brushMask(object) {
    const sign = signature(object);
    const known = this.masks.get(object.id);
    if (known?.sign === sign) return known.mask;
    if (object.mask) {
      this.masks.set(object.id, { sign, mask: this.maskCanvas(object.mask) });
      return this.masks.get(object.id).mask;
    }
    if (this.shown.get(object.id)?.sign === sign && known?.loading !== sign) {
      this.masks.set(object.id, { loading: sign });
      this.#loadCoarse(object, sign);
    }
    return null;
  }

  async #loadCoarse(object, sign) {
    try {
      const mask = this.maskCanvas();
      const response = await this.#askResult(object, sign, '/coarse?longest=2048');
      const bitmap = await createImageBitmap(await response.blob());
      mask.load(bitmap);
      bitmap.close();
      if (this.masks.get(object.id)?.loading === sign) this.masks.set(object.id, { sign, mask });
      this.listener.changed(this);
    } catch (error) {
      this.masks.delete(object.id);
      this.listener.failed(this, error);
    }
  }

  /** Make a request about an object's result; segment it again if the server has dropped it. */
  async #askResult(object, sign, path) {
    for (let attempt = 0; ; attempt++) {
      const { key } = await this.#segment(object, sign);
      try {
        return await this.#ask(`/results/${key}${path}`);
      } catch (error) {
        if (error.status !== 404 || attempt > 0) throw error;
        this.cache.delete(sign);
      }
    }
  }

  /** Take the painted mask as the object's coarse mask. */
  commitMask(object, mask) {
    const snapshot = mask.snapshot();
    const changed = { ...object, mask: snapshot };
    this.masks.set(object.id, { sign: signature(changed), mask });
    if (this.objects.some((o) => o.id === object.id)) this.replace(changed);
    else this.add(changed);
  }

  // --- results ---

  /** Get the objects' own colors, as downloads have them: without those of the old background at soft edges. */
  loadColors() {
    for (const object of this.objects) {
      const shown = this.shown.get(object.id);
      if (shown && !shown.colors && !shown.asked && shown.sign === signature(object)) this.#loadColors(object, shown);
    }
  }

  async #loadColors(object, shown) {
    shown.asked = true;
    try {
      const response = await this.#askResult(object, shown.sign, '/colors?longest=2048');
      const colors = await Layer.from(await response.blob(), shown.layer.area);
      if (this.shown.get(object.id) !== shown) return colors.close();
      shown.colors = colors;
      this.listener.changed(this);
    } catch (error) {
      this.listener.failed(this, error);  // the photograph's own colors are shown
    }
  }

  /** Return {picture, results} for a download. `again` computes everything that the server may have dropped. */
  async exportItem(again = false) {
    if (again) this.cache.clear();
    const results = [];
    for (const object of this.objects) {
      const sign = signature(object), work = this.working.get(object.id);
      if (work?.sign === sign) await work.done;  // a second request would take its place in the queue
      results.push((await this.#segment(object, sign)).key);
    }
    return { picture: this.serverId, results };
  }

  async save() {
    for (let attempt = 0; ; attempt++) {
      const { results } = await this.exportItem(attempt > 0);
      try {
        return await (await this.#ask('/save', { method: 'POST', json: { results } })).json();
      } catch (error) {
        if (error.status !== 404 || attempt > 0) throw error;
      }
    }
  }

  /** Free the memory of the bitmaps while another picture is shown. */
  sleep() {
    for (const { controller } of this.working.values()) controller.abort();
    this.working.clear();
    for (const shown of this.shown.values()) free(shown);
    this.shown.clear();
    this.masks.clear();
    this.photo?.close();
    this.photo = null;
  }

  async wake() {
    if (!this.photo) await this.#loadPhoto();
    this.refresh();
  }

  close() {
    this.closed = true;
    this.sleep();
    this.forget();
  }

  /** Let the server free its memory; it gets the picture again if that is needed. */
  forget() {
    if (this.serverId) call(`api/pictures/${this.serverId}`, { method: 'DELETE', keepalive: true }).catch(() => {});
  }
}

/** Download results: one picture's, or several pictures' as ZIP. Returns {blob, name}. */
export async function exportPictures(pictures, options) {
  for (let attempt = 0; ; attempt++) {
    const items = [];
    for (const picture of pictures) items.push(await picture.exportItem(attempt > 0));
    try {
      const response = await call('api/export', { method: 'POST', json: { items, ...options } });
      const name = /filename\*=UTF-8''([^;]+)/.exec(response.headers.get('Content-Disposition') ?? '')?.[1];
      return { blob: await response.blob(), name: name ? decodeURIComponent(name) : 'cutout.png' };
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404 || attempt > 0) throw error;
    }
  }
}
