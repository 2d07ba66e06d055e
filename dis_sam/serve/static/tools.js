// What pointers and keys do on the canvas.

import { clamp, handles } from './view.js';
import { newObject } from './picture.js';

const CLICK = 4;       // CSS pixels that a click may move
const KEY_STEP = 10;   // CSS pixels that an arrow key moves the crosshair
const PAN_STEP = 60;

export class Tools {
  /** @param page has hint(text), say(text, delay), and zoomed(), which is called after zooming. */
  constructor(view, page) {
    this.view = view;
    this.page = page;
    this.tool = 'box';
    this.diameter = 40;
    this.space = false;
    this.pointers = new Map();
    this.gesture = null;
    this.blank = null;    // MaskCanvas of an object that does not exist yet
    this.anchor = null;   // first corner of a box drawn by keys
    this.penDown = null;  // what the brush paints on by keys
    const { canvas } = view;
    canvas.addEventListener('pointerdown', (event) => this.#down(event));
    canvas.addEventListener('pointermove', (event) => this.#move(event));
    canvas.addEventListener('pointerup', (event) => this.#up(event));
    canvas.addEventListener('pointercancel', (event) => this.#up(event, true));
    canvas.addEventListener('pointerleave', () => { if (!this.gesture) this.#showBrush(null); });
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener('keydown', (event) => this.#key(event));
    canvas.addEventListener('blur', () => { this.cancel(); this.view.crosshair = null; this.view.draw(); });
  }

  get picture() { return this.view.picture; }
  get brushing() { return this.tool === 'paint' || this.tool === 'erase'; }

  setTool(tool) {
    this.cancel();
    this.tool = tool;
    this.update();
    this.setCursor();
  }

  setDiameter(diameter) {
    this.diameter = diameter;
    if (this.view.brush) this.view.brush.diameter = diameter;
    this.view.draw();
  }

  /** Show the mask under the brush; called after every change of picture, objects or tool. */
  update() {
    const { picture, view } = this;
    if (!picture?.photo) return;
    if (!this.brushing) {
      view.mask = null;
      view.brush = null;
      this.blank = null;
    } else if (picture.activeObject) {
      this.blank = null;
      if (this.gesture?.kind !== 'brush' && !this.penDown) view.mask = picture.brushMask(picture.activeObject);
    } else {
      if (this.blank?.picture !== picture) this.blank = { picture, mask: picture.maskCanvas() };
      view.mask = this.blank.mask;
    }
    view.draw();
  }

  setCursor(hover = '') {
    const moving = this.space || this.tool === 'move';
    const cursor = moving ? (this.gesture?.kind === 'pan' ? 'grabbing' : 'grab') : this.brushing ? 'none' : hover || 'crosshair';
    this.view.canvas.style.cursor = cursor;
  }

  setSpace(held) {
    this.space = held;
    if (held) this.#showBrush(null);
    this.setCursor();
  }

  cancel() {
    const { gesture } = this;
    if (gesture?.kind === 'brush') this.#restore(gesture);
    if (gesture?.kind === 'handle') this.picture.refresh();
    if (this.penDown) this.#restore(this.penDown);
    this.gesture = this.anchor = this.penDown = null;
    this.view.draft = null;
    this.view.draw();
  }

  #restore({ mask, before }) { mask.restore(before); }

  // --- pointers ---

  #at(event) {
    const { left, top } = this.view.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #down(event) {
    if (!this.picture?.photo) return;
    const [x, y] = this.#at(event);
    this.view.canvas.setPointerCapture(event.pointerId);
    this.view.crosshair = null;
    this.pointers.set(event.pointerId, [x, y]);
    if (this.pointers.size === 2) {
      this.cancel();
      this.gesture = { kind: 'pinch', ...this.#pinch() };
    } else if (this.pointers.size === 1) {
      this.gesture = this.#begin(event, x, y);
      this.setCursor();
    }
  }

  #begin(event, x, y) {
    if (event.button === 1 || this.space || this.tool === 'move') {
      event.preventDefault();
      return { kind: 'pan', x, y };
    }
    if (event.button !== 0) return null;
    const start = [x, y];
    if (this.tool === 'box') return { ...(this.#grab(x, y, event.pointerType) ?? { kind: 'box' }), start, pixel: this.view.pixelAt(x, y) };
    if (this.brushing) return this.#beginStroke(this.view.toPicture(x, y));
    return { kind: 'point', start };
  }

  #pinch() {
    const [[x0, y0], [x1, y1]] = [...this.pointers.values()];
    return { distance: Math.hypot(x1 - x0, y1 - y0) || 1, x: (x0 + x1) / 2, y: (y0 + y1) / 2 };
  }

  #move(event) {
    const { view, gesture } = this;
    if (!this.picture?.photo) return;
    const [x, y] = this.#at(event);
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, [x, y]);
    if (this.brushing && !this.space) this.#showBrush([x, y], event.pointerType);
    if (!gesture) {
      if (this.tool === 'box') this.setCursor(this.#grab(x, y, event.pointerType)?.cursor);
    } else if (gesture.kind === 'pinch' && this.pointers.size === 2) {
      const now = this.#pinch();
      view.pan(now.x - gesture.x, now.y - gesture.y);
      view.zoom(now.distance / gesture.distance, now.x, now.y);
      Object.assign(gesture, now);
      this.page.zoomed();
    } else if (gesture.kind === 'pan') {
      view.pan(x - gesture.x, y - gesture.y);
      Object.assign(gesture, { x, y });
    } else if (gesture.kind === 'box') {
      if (!gesture.far && distance(gesture.start, [x, y]) < CLICK) return;
      gesture.far = true;
      view.draft = { id: null, box: between(gesture.pixel, view.pixelAt(x, y)) };
      view.draw();
    } else if (gesture.kind === 'handle') {
      gesture.far = true;
      view.draft = { id: gesture.object.id, box: this.#dragged(gesture, view.pixelAt(x, y)) };
      view.draw();
      if (hasArea(view.draft.box)) this.picture.preview({ ...gesture.object, box: view.draft.box });
    } else if (gesture.kind === 'brush') {
      // events that came since the last frame, so that fast strokes stay round
      for (const part of event.getCoalescedEvents?.() ?? [event]) this.#stroke(gesture, view.toPicture(...this.#at(part)));
    }
  }

  #up(event, cancelled = false) {
    const { view, gesture } = this;
    this.pointers.delete(event.pointerId);
    if (!gesture) return;
    if (gesture.kind === 'pinch') {
      if (this.pointers.size === 0) this.gesture = null;
      return;
    }
    if (cancelled) {
      this.cancel();
      return;
    }
    this.gesture = null;
    const [x, y] = this.#at(event);
    const { draft } = view;
    view.draft = null;
    if (gesture.kind === 'box' || gesture.kind === 'handle') {
      if (draft && hasArea(draft.box)) this.#setBox(draft.box, gesture.object);
      else if (gesture.kind === 'box') this.#select(x, y);
    } else if (gesture.kind === 'point' && distance(gesture.start, [x, y]) < 2 * CLICK) {
      this.#addPoint(view.pixelAt(x, y), [x, y]);
    } else if (gesture.kind === 'brush') {
      this.#endStroke(gesture);
    }
    this.setCursor();
    view.draw();
  }

  #wheel(event) {
    event.preventDefault();
    if (!this.picture?.photo) return;
    const [x, y] = this.#at(event);
    const unit = event.deltaMode === 1 ? 20 : event.deltaMode === 2 ? 400 : 1;
    if (event.shiftKey) {
      this.view.pan(-(event.deltaX || event.deltaY) * unit, 0);
    } else {
      this.view.zoom(Math.exp(clamp(-event.deltaY * unit * (event.ctrlKey ? 0.01 : 0.0022), -1, 1)), x, y);
      this.page.zoomed();
    }
    if (this.brushing) this.#showBrush([x, y]);
  }

  #showBrush(at, pointer = 'mouse') {
    this.view.brush = at && pointer !== 'touch' ? { x: at[0], y: at[1], diameter: this.diameter } : null;
    this.view.draw();
  }

  // --- boxes ---

  /** Return the handle or the side of the selected box that is under the pointer. */
  #grab(x, y, pointer) {
    const object = this.picture.activeObject;
    if (!object?.box || object.mask) return null;
    const reach = pointer === 'touch' ? 22 : 9;
    const area = this.view.boxOnScreen(object.box);
    const index = handles(area).findIndex((handle) => distance(handle, [x, y]) <= reach);
    const base = { kind: 'handle', object, box: object.box };
    if (index >= 0) return { ...base, index, cursor: ['nwse', 'ns', 'nesw', 'ew'][index % 4] + '-resize' };
    const [left, top, width, height] = area;
    const near = (value, line) => Math.abs(value - line) <= reach / 2;
    const inside = x > left - reach / 2 && x < left + width + reach / 2 && y > top - reach / 2 && y < top + height + reach / 2;
    const onSide = near(x, left) || near(x, left + width) || near(y, top) || near(y, top + height);
    return inside && onSide ? { ...base, index: -1, cursor: 'move' } : null;
  }

  #dragged({ box, index, pixel }, [u, v]) {
    const [x0, y0, x1, y1] = box;
    const { width, height } = this.picture;
    if (index < 0) {
      const dx = clamp(u - pixel[0], -x0, width - 1 - x1), dy = clamp(v - pixel[1], -y0, height - 1 - y1);
      return [x0 + dx, y0 + dy, x1 + dx, y1 + dy];
    }
    const left = [0, 6, 7].includes(index) ? u : x0, right = [2, 3, 4].includes(index) ? u : x1;
    const top = [0, 1, 2].includes(index) ? v : y0, bottom = [4, 5, 6].includes(index) ? v : y1;
    return between([left, top], [right, bottom]);
  }

  #setBox(box, object = null) {
    const { picture } = this;
    const active = picture.activeObject;
    // points that have no box yet get this one; any other box is a new object
    const target = object ?? (active && !active.box && !active.mask && active.points.length ? active : null);
    if (target) picture.replace({ ...target, box, whole: false });
    else picture.add(newObject({ box }));
    this.page.say(`Box from ${box[0]}, ${box[1]} to ${box[2]}, ${box[3]}`);
  }

  /** Select the object under the pointer: of several, the one with the smallest box. */
  #select(x, y) {
    const [u, v] = this.view.toPicture(x, y);
    const size = ({ area: [, , width, height] }) => width * height;
    const under = this.picture.objects
      .map((object) => ({ object, area: object.box && !object.mask ? asArea(object.box) : this.picture.shown.get(object.id)?.layer.area }))
      .filter(({ area }) => area && u >= area[0] && v >= area[1] && u < area[0] + area[2] && v < area[1] + area[3])
      .sort((a, b) => size(a) - size(b));
    this.picture.select(under[0]?.object.id ?? null);
  }

  // --- points ---

  #addPoint([u, v], screen) {
    const { picture } = this;
    const object = picture.activeObject;
    const label = this.tool === 'include' ? 1 : 0;
    if (object && !object.mask) {
      const hit = object.points.findIndex(([px, py]) => distance(this.view.toScreen(px + 0.5, py + 0.5), screen) < 10);
      const points = hit >= 0 ? object.points.filter((_, index) => index !== hit) : [...object.points, [u, v, label]];
      if (!object.box && !points.some((point) => point[2] === 1)) {
        if (hit >= 0) picture.remove(object.id);
        else this.page.hint('First mark the object with a box or an include point.');
        return;
      }
      picture.replace({ ...object, points, whole: false });
    } else if (object?.mask) {  // painted masks do not go together with points
      if (label) picture.replace({ ...object, mask: null, points: [[u, v, 1]], box: null });
      else this.page.hint('Erase from the painted mask, or discard its edits.');
    } else if (label) {
      picture.add(newObject({ points: [[u, v, 1]] }));
    } else {
      this.page.hint('First mark the object with a box or an include point.');
    }
    this.page.say(`${label ? 'Include' : 'Exclude'} point at ${u}, ${v}`);
  }

  // --- brush ---

  #beginStroke(at) {
    const { view, picture } = this;
    if (!view.mask) {
      this.page.hint('The mask is still being made.');
      return null;
    }
    const gesture = { kind: 'brush', object: picture.activeObject, mask: view.mask, before: view.mask.snapshot(), last: at };
    this.#stroke(gesture, at);
    return gesture;
  }

  #stroke(gesture, to) {
    gesture.mask.stroke(gesture.last, to, this.diameter, this.tool === 'erase');
    gesture.last = to;
    this.view.draw();
  }

  #endStroke({ object, mask }) {
    if (!object && this.tool === 'erase') {
      this.page.hint('There is nothing to erase yet. Select an object first.');
      return;
    }
    this.blank = null;
    this.picture.commitMask(object ?? newObject(), mask);
  }

  // --- keys ---

  #key(event) {
    const { view, picture } = this;
    if (!picture?.photo || event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (direction && this.space) {
      view.pan(-direction[0] * PAN_STEP, -direction[1] * PAN_STEP);
    } else if (direction) {
      this.#moveCrosshair(direction, event.shiftKey ? 1 : Math.max(1, Math.round(KEY_STEP / view.scale)));
    } else if (event.key === 'Enter') {
      this.#enter();
    } else if (event.key === 'Escape') {
      if (this.anchor || this.penDown || this.gesture) this.cancel();
      else picture.select(null);
    } else {
      return;
    }
    event.preventDefault();
  }

  #moveCrosshair([dx, dy], step) {
    const { view, picture } = this;
    const [u, v] = view.crosshair ?? view.pixelAt(view.width / 2, view.height / 2);
    const to = [clamp(u + dx * step, 0, picture.width - 1), clamp(v + dy * step, 0, picture.height - 1)];
    view.crosshair = to;
    view.reveal(...to);
    if (this.anchor) view.draft = { id: null, box: between(this.anchor, to) };
    if (this.penDown) this.#stroke(this.penDown, [to[0] + 0.5, to[1] + 0.5]);
    this.page.say(`${to[0]}, ${to[1]}`, 500);
    view.draw();
  }

  #enter() {
    const { view } = this;
    const at = view.crosshair;
    if (!at) {
      view.crosshair = view.pixelAt(view.width / 2, view.height / 2);
      view.draw();
    } else if (this.tool === 'box') {
      if (!this.anchor) {
        this.anchor = at;
        this.page.say('First corner set. Move to the opposite corner and press Enter.');
        return;
      }
      const box = between(this.anchor, at);
      this.anchor = view.draft = null;
      if (hasArea(box)) this.#setBox(box);
    } else if (this.tool === 'include' || this.tool === 'exclude') {
      this.#addPoint(at, view.toScreen(at[0] + 0.5, at[1] + 0.5));
    } else if (this.brushing && this.penDown) {
      const stroke = this.penDown;
      this.penDown = null;
      this.#endStroke(stroke);
      this.page.say('Brush up');
    } else if (this.brushing) {
      this.penDown = this.#beginStroke([at[0] + 0.5, at[1] + 0.5]);
      this.page.say('Brush down');
    }
  }
}

const distance = ([x0, y0], [x1, y1]) => Math.hypot(x1 - x0, y1 - y0);
const between = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
const hasArea = ([x0, y0, x1, y1]) => x1 > x0 || y1 > y0;
const asArea = ([x0, y0, x1, y1]) => [x0, y0, x1 - x0 + 1, y1 - y0 + 1];
