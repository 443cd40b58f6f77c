'use strict';
// Draws a simulated system on a canvas: of the page of an episode, and of the labelling page.

const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

// Vectors, and rotations by quaternions (w, x, y, z).
const add = (a, b, k = 1) => [a[0] + k * b[0], a[1] + k * b[1], a[2] + k * b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => add([0, 0, 0], a, 1 / (Math.hypot(...a) || 1));
const rotate = (q, v) => {
  const u = [q[1], q[2], q[3]], t = add(cross(u, v), v, q[0]);
  return add(add([0, 0, 0], v), cross(u, t), 2);
};

// A camera that the mouse moves on each of these canvases.
function makeCamera(far, canvases) {
  const camera = { turn: -1.2, lift: 0.32, far };
  for (const canvas of canvases) {
    let held = null;
    canvas.onpointerdown = (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); };
    canvas.onpointerup = canvas.onpointercancel = () => { held = null; };
    canvas.onpointermove = (event) => {
      if (!held) return;
      camera.turn -= (event.clientX - held[0]) / 150;
      camera.lift = Math.max(-0.2, Math.min(1.5, camera.lift + (event.clientY - held[1]) / 150));
      held = [event.clientX, event.clientY];
    };
    canvas.onwheel = (event) => { camera.far = Math.max(0.5, Math.min(30, camera.far * Math.exp(event.deltaY / 800))); };
  }
  return camera;
}

// geoms, links and view as `sail_jax.control.render` gives them; poses are [T + 1, links, 7].
function makeScene(canvas, camera, { geoms, links, view }) {
  // The camera looks at what moves, from where the mouse takes it.
  const pen = canvas.getContext('2d'), target = [0, 0, view[1]];
  const light = unit([0.35, -0.45, 0.82]);
  let eye, right, up, ahead, width, height, scale;
  function look() {
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    scale = 1.1 * Math.min(width, height * 1.4);
    const flat = Math.cos(camera.lift);
    ahead = [-flat * Math.cos(camera.turn), -flat * Math.sin(camera.turn), -Math.sin(camera.lift)];
    right = unit(cross(ahead, [0, 0, 1])); up = cross(right, ahead);
    eye = add(target, ahead, -camera.far);
  }
  function project(p) {  // [x, y, pixels a metre, depth]; depth below 0.1 is behind the eye.
    const d = add(p, eye, -1), z = dot(d, ahead), k = scale / z;
    return [width / 2 + k * dot(d, right), height / 2 - k * dot(d, up), k, z];
  }
  const rgb = (color, k) => `rgb(${color.slice(0, 3).map((c) => Math.round(255 * Math.min(1, c * k)))})`;
  const paint = (color, k) => { pen.globalAlpha = color[3]; pen.fillStyle = pen.strokeStyle = rgb(color, k); };
  function outline(points, path = pen) {
    points.forEach((p, i) => (i ? path.lineTo(p[0], p[1]) : path.moveTo(p[0], p[1])));
    path.closePath();
  }
  function hull(points) {  // The convex one, always the same way round.
    points = points.slice().sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const half = (list) => {
      const kept = [];
      for (const p of list) {
        for (let n = kept.length; n > 1; n = kept.length) {
          const [a, b] = [kept[n - 2], kept[n - 1]];
          if ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0) break;
          kept.pop();
        }
        kept.push(p);
      }
      kept.pop();
      return kept;
    };
    return [...half(points), ...half(points.reverse())];
  }

  // What is drawn: capsules (and spheres), and faces of everything else; far ones first.
  function capsule(items, a, b, radius, color) {
    const pieces = Math.min(8, Math.max(1, Math.round(Math.hypot(...add(b, a, -1)) / (2 * radius))));
    for (let i = 0; i < pieces; i++) {
      const [p, q] = [i, i + 1].map((j) => project(add(a, add(b, a, -1), j / pieces)));
      if (Math.min(p[3], q[3]) < 0.1 || !(p[0] + q[0] < Infinity)) continue;
      items.push([(p[3] + q[3]) / 2, () => {
        const [r, s] = [p[2] * radius, q[2] * radius], far = Math.hypot(q[0] - p[0], q[1] - p[1]);
        const angle = Math.atan2(q[1] - p[1], q[0] - p[0]);
        const bend = Math.acos(Math.max(-1, Math.min(1, (r - s) / (far || 1))));
        pen.beginPath();
        pen.arc(p[0], p[1], r, angle + bend, angle - bend);
        pen.arc(q[0], q[1], s, angle - bend, angle + bend);
        pen.closePath();
        paint(color, 1);
        let shade;
        if (far < 0.4 * r) {
          shade = pen.createRadialGradient(p[0] - 0.3 * r, p[1] - 0.4 * r, 0.1 * r, p[0], p[1], 1.1 * r);
        } else {  // Across, lit from above.
          const w = Math.max(r, s), side = Math.cos(angle) > 0 ? 1 : -1;
          const [x, y] = [side * Math.sin(angle) * w, -side * Math.cos(angle) * w];
          shade = pen.createLinearGradient(p[0] + 1.6 * x, p[1] + 1.6 * y, p[0] - 1.1 * x, p[1] - 1.1 * y);
        }
        [[0, 1.45], [0.45, 1.1], [1, 0.6]].forEach(([where, k]) => shade.addColorStop(where, rgb(color, k)));
        pen.fillStyle = shade;
        pen.fill();
      }]);
    }
  }
  function faces(items, corners, sides, color) {
    const seen = corners.map(project);
    for (const side of sides) {
      if (side.some((i) => !(seen[i][3] > 0.1))) continue;
      const [a, b, c] = side.map((i) => corners[i]);
      const normal = unit(cross(add(b, a, -1), add(c, a, -1)));
      if (dot(normal, add(a, eye, -1)) > 0) continue;
      const depth = side.reduce((sum, i) => sum + seen[i][3], 0) / side.length;
      items.push([depth, () => {
        paint(color, 0.6 + 0.55 * Math.max(0, dot(normal, light)));
        pen.beginPath(); outline(side.map((i) => seen[i])); pen.fill(); pen.lineWidth = 0.6; pen.stroke();
      }]);
    }
  }
  function ground(z) {
    const [n, x, y] = [16, Math.round(target[0]), Math.round(target[1])];
    for (let i = x - n; i < x + n; i++) for (let j = y - n; j < y + n; j++) {
      const tile = [[i, j, z], [i + 1, j, z], [i + 1, j + 1, z], [i, j + 1, z]].map(project);
      if (tile.some((p) => p[3] < 0.1)) continue;
      pen.globalAlpha = Math.max(0, 1 - Math.hypot(i + 0.5 - x, j + 0.5 - y) / n);
      pen.fillStyle = (i + j) & 1 ? '#b9c7d4' : '#c9d5df';
      pen.beginPath(); outline(tile); pen.fill();
    }
    pen.globalAlpha = 1;
  }
  const ring = (n) => Array.from({ length: n }, (_, i) => [Math.cos(2 * Math.PI * i / n), Math.sin(2 * Math.PI * i / n)]);
  const range = (n, from = 0) => Array.from({ length: n }, (_, i) => i + from);
  function solid({ type, size: [a, b, c] }) {  // Corners, and faces counterclockwise from outside.
    if (type === 'box') {
      const corners = range(8).map((i) => [i & 1 ? a : -a, i & 2 ? b : -b, i & 4 ? c : -c]);
      return [corners, [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]];
    }
    if (type === 'cylinder') {
      const n = 24, corners = [-b, b].flatMap((z) => ring(n).map(([x, y]) => [a * x, a * y, z]));
      const sides = range(n).map((i) => [i, (i + 1) % n, n + (i + 1) % n, n + i]);
      return [corners, [...sides, range(n).reverse(), range(n, n)]];
    }
    const n = 16, m = 9;  // An ellipsoid.
    const corners = range(m).flatMap((k) => ring(n).map(([x, y]) => {
      const lift = Math.PI * (k / (m - 1) - 0.5);
      return [a * x * Math.cos(lift), b * y * Math.cos(lift), c * Math.sin(lift)];
    }));
    return [corners, range(m - 1).flatMap((k) => range(n).map((i) =>
      [k * n + i, k * n + (i + 1) % n, (k + 1) * n + (i + 1) % n, (k + 1) * n + i]))];
  }
  for (const geom of geoms) {
    if (geom.type === 'mesh') [geom.corners, geom.faces] = [geom.vert, geom.face];
    else if (!['plane', 'sphere', 'capsule'].includes(geom.type)) [geom.corners, geom.faces] = solid(geom);
  }
  const floor = geoms.find((geom) => geom.type === 'plane');

  function place(geom, poses, frame) {  // Where a geom's points are in the world.
    const k = 7 * (frame * links + geom.link);
    const [pos, rot] = geom.link < 0 ? [[0, 0, 0], [1, 0, 0, 0]] : [poses.subarray(k, k + 3), poses.subarray(k + 3, k + 7)];
    return (p) => add(pos, rotate(rot, add(geom.pos, rotate(geom.rot, p))));
  }
  function draw(poses, frame) {
    look();
    pen.globalAlpha = 1;
    const sky = pen.createLinearGradient(0, 0, 0, height);
    sky.addColorStop(0, '#f4f8fb'); sky.addColorStop(1, '#d3dee8');
    pen.fillStyle = sky; pen.fillRect(0, 0, width, height);
    const items = [], shadows = new Path2D(), z = floor ? floor.pos[2] : 0;
    const shadow = (points) => {
      const seen = points.map((p) => project(add(p, light, -(p[2] - z) / light[2])));
      if (seen.every((p) => p[3] > 0.1)) outline(hull(seen), shadows);
    };
    for (const geom of geoms) {
      if (geom === floor || geom.type === 'plane' || !geom.color[3]) continue;
      const put = place(geom, poses, frame), [radius, half] = geom.size;
      if (geom.corners) {
        const corners = geom.corners.map(put);
        shadow(corners); faces(items, corners, geom.faces, geom.color);
      } else {
        const reach = geom.type === 'capsule' ? half : 0;
        const [a, b] = [put([0, 0, -reach]), put([0, 0, reach])];
        shadow([a, b].flatMap((p) => ring(12).map(([x, y]) => add(p, [radius * x, radius * y, 0]))));
        capsule(items, a, b, radius, geom.color);
      }
    }
    if (floor && eye[2] > z) {
      ground(z);
      pen.fillStyle = '#2b394938'; pen.fill(shadows, 'nonzero');
    }
    items.sort((p, q) => q[0] - p[0]).forEach(([, fill]) => fill());
    pen.globalAlpha = 1;
  }

  // Takes the camera's aim to what moves, all the way (1) or a part of it.
  function follow(poses, frame, ease) {
    const middle = links ? poses.subarray(7 * frame * links, 7 * frame * links + 2) : [0, 0];
    for (const i of [0, 1]) {
      const way = middle[i] - target[i];
      if (Number.isFinite(way)) target[i] += ease * way;
    }
  }
  return { draw, follow };
}
