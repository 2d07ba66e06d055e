"""raytrace: coverage against areas computed by clipping, holes, glass, occlusion and the shadow on the floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.starter import raytrace
from recipes.starter.raytrace import Camera, Light, Mesh, Scene, Surface, fold, render, to_linear, unfold

SIZE = 40, 56


@pytest.fixture
def embree():
    """Skip the test where rays cannot be traced."""
    pytest.importorskip("embreex", reason="the extra `render` is not installed")


def camera(focal: float = 40.0) -> Camera:
    """Return a camera 2 before the origin, looking along -z: at z = 0, a unit is `focal / 2` pixels."""
    return Camera(np.array([0.0, 0.0, 2.0]), np.diag([1.0, -1.0, -1.0]), focal, (SIZE[1] / 2, SIZE[0] / 2))


def plain_light() -> Light:
    sky = np.full((64, 64, 3), 0.5, np.float32)
    return Light(sky, np.full((256, 256, 3), 0.5, np.float32), np.float32([0, 1, 0]), np.float32([1, 1, 1]), 0.05)


def polygon(points: np.ndarray, depth: float = 0.0, surface: Surface | None = None) -> Mesh:
    """Return a convex polygon, given as x and y (n, 2) in pixels of :func:`camera`, at a depth behind z = 0."""
    scale = (2 + depth) / 40.0
    xy = (np.asarray(points, float) - (SIZE[1] / 2, SIZE[0] / 2)) * (scale, -scale)
    corners = np.column_stack([xy, np.full(len(xy), -depth)])
    fan = np.array([[0, k, k + 1] for k in range(1, len(xy) - 1)])
    uv = (xy - xy.min(0)) / np.ptp(xy, axis=0)
    normals = np.broadcast_to(np.float32([0, 0, 1]), (len(fan), 3, 3))
    material = np.zeros(len(fan), int)
    return Mesh(corners[fan].astype(np.float32), normals, uv[fan].astype(np.float32), material, [surface or Surface()])


def clip(points: np.ndarray, axis: int, limit: float, sign: int) -> np.ndarray:
    """Cut a polygon along a line (Sutherland and Hodgman)."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        da, db = sign * (a[axis] - limit), sign * (b[axis] - limit)
        if da >= 0:
            kept.append(a)
        if da * db < 0:
            kept.append(a + (b - a) * da / (da - db))
    return np.array(kept)


def areas(points: np.ndarray) -> np.ndarray:
    """Return how much of each pixel a polygon covers, (h, w), by clipping it to the pixel."""
    covered = np.zeros(SIZE)
    for y in range(SIZE[0]):
        row = np.asarray(points, float)
        for axis, limit, sign in ((1, y, 1), (1, y + 1, -1)):
            row = clip(row, axis, limit, sign) if len(row) else row
        for x in range(SIZE[1]):
            part = row
            for axis, limit, sign in ((0, x, 1), (0, x + 1, -1)):
                part = clip(part, axis, limit, sign) if len(part) else part
            if len(part) > 2:
                px, py = part.T
                covered[y, x] = abs(np.dot(px, np.roll(py, -1)) - np.dot(py, np.roll(px, -1))) / 2
    return covered


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def draw(*meshes: Mesh, **options: object) -> raytrace.Layers:
    return render(Scene(meshes), camera(), plain_light(), SIZE, np.random.default_rng(0), **{"floor": False, **options})


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 1e-2), min_size=1, max_size=8))
def test_the_map_of_directions_can_be_undone(vectors):
    directions = np.float32(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    at = fold(directions)
    assert at.min() >= 0 and at.max() <= 1
    table = unfold(256)
    x, y = np.minimum((at * 256).astype(int), 255).T
    assert (np.einsum("ij,ij->i", table[y, x], directions) > np.cos(0.03)).all()


def test_the_camera_looks_through_the_points_it_projects():
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (50, 3))
    seen = camera().project(points)
    rays = camera().directions(seen[:, :2])
    reached = camera().eye + rays * np.linalg.norm(points - camera().eye, axis=1, keepdims=True)
    np.testing.assert_allclose(reached, points, atol=1e-5)
    np.testing.assert_allclose(seen[:, 2], 2 - points[:, 2])


def test_a_moved_mesh_keeps_its_shape_and_unit_normals():
    mesh = polygon(rectangle(10, 10, 30, 25))
    turn = np.array([[0, 0, 2.0], [0, 2.0, 0], [-2.0, 0, 0]])
    moved = mesh.moved(turn, (1, 2, 3))
    np.testing.assert_allclose(moved.triangles, mesh.triangles @ turn.T.astype(np.float32) + [1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(moved.normals, axis=-1), 1, atol=1e-6)


def test_the_places_in_a_pixel_share_no_row_or_column():
    assert len(raytrace._DENSE) == 64
    for column in raytrace._DENSE.T:
        np.testing.assert_allclose(np.sort(column), (np.arange(64) + 0.5) / 64)


@pytest.mark.parametrize(
    "points",
    [
        rectangle(10.3, 8.75, 31.6, 29.1),
        np.array([[28.2, 4.1], [49.7, 21.3], [25.0, 36.8], [6.4, 17.9]]),
        np.array([[5.0, 35.0], [50.5, 36.5], [49.0, 3.2]]),
    ],
)
def test_coverage_is_the_area_of_the_polygon_in_each_pixel(embree, points):
    covered = draw(polygon(points)).coverage[0]
    expected = areas(points)
    crossed = (expected > 0) & (expected < 1)
    assert np.abs(covered - expected)[crossed].mean() < 0.015 and np.abs(covered - expected).max() < 0.06
    assert (covered[~crossed] == expected[~crossed]).all()
    assert covered.sum() == pytest.approx(expected.sum(), rel=1e-3)


def test_bars_thinner_than_a_pixel_keep_their_area(embree):
    bars = [polygon(rectangle(x, 6.2, x + 0.55, 33.7)) for x in np.arange(8.1, 48, 3.37)]
    bars += [polygon(np.array([[9, y], [47, y + 9], [47, y + 9.4], [9, y + 0.4]])) for y in np.arange(8.1, 24, 4.6)]
    for bar, points in zip(draw(*bars[:12]).coverage, np.arange(8.1, 48, 3.37), strict=True):
        assert bar.sum() == pytest.approx(0.55 * 27.5, rel=0.03), points
    assert draw(bars[-1]).coverage.sum() == pytest.approx(38 * 0.4, rel=0.05)


def test_what_is_hidden_is_not_covered(embree):
    behind, before = rectangle(10.5, 8.5, 40.25, 30), rectangle(25.75, 5, 45, 20.5)
    layers = draw(polygon(behind, depth=0.5), polygon(before, depth=0.0))
    overlap = areas(rectangle(25.75, 8.5, 40.25, 20.5))
    np.testing.assert_allclose(layers.coverage[1], areas(before), atol=0.04)
    np.testing.assert_allclose(layers.coverage[0], areas(behind) - overlap, atol=0.04)
    np.testing.assert_allclose(layers.through, 1 - layers.coverage.sum(0), atol=1e-5)


def test_an_object_at_the_border_of_the_frame_is_cut(embree):
    points = rectangle(-20, -10, 12.5, 60)
    np.testing.assert_allclose(draw(polygon(points)).coverage[0], areas(points), atol=0.04)


def test_an_object_outside_of_the_frame_covers_nothing(embree):
    layers = draw(polygon(rectangle(80, 5, 90, 15)))
    assert not layers.coverage.any() and not layers.color.any() and (layers.through == 1).all()


def test_holes_of_a_texture_are_not_covered(embree):
    holes = np.zeros((2, 4), bool)
    holes[0, :2] = holes[1, 2:] = True  # solid at the top left and at the bottom right
    surface = Surface(texture=np.full((2, 4, 3), 200, np.uint8), opacity_map=holes)
    covered = draw(polygon(rectangle(8, 8, 48, 32), surface=surface)).coverage[0]
    np.testing.assert_allclose(covered, areas(rectangle(8, 8, 28, 20)) + areas(rectangle(28, 20, 48, 32)), atol=0.04)


def test_behind_a_hole_the_next_object_is_seen(embree):
    gone = Surface(texture=np.zeros((1, 1, 3), np.uint8), opacity_map=np.zeros((1, 1), bool))
    wanted = rectangle(15, 12, 30, 25)
    layers = draw(polygon(rectangle(5, 5, 50, 35), surface=gone), polygon(wanted, depth=0.4))
    assert not layers.coverage[0].any()
    np.testing.assert_allclose(layers.coverage[1], areas(wanted), atol=0.04)


def test_glass_is_covered_and_lets_the_background_through(embree):
    pane = rectangle(10, 10, 40, 30)
    layers = draw(polygon(pane, surface=Surface(opacity=0.3)))
    inside = np.s_[12:28, 12:38]
    assert (layers.coverage[0][inside] == 1).all()
    assert 0.6 < layers.through[inside].mean() < 0.7  # 1 - 0.3, less what the pane reflects
    solid = draw(polygon(pane, surface=Surface(opacity=0.3)), polygon(pane, depth=0.5))
    assert not solid.through[inside].any() and (solid.coverage[0][inside] == 1).all()


def test_a_surface_reflects_its_share_of_an_even_light(embree):
    """Without a sun, before an even sky, a matte surface has the sky's radiance times its albedo."""
    dark = Light(*(np.full((n, n, 3), 0.5, np.float32) for n in (64, 256)), np.float32([0, 1, 0]), np.zeros(3), 0.05)
    mesh = polygon(rectangle(10, 10, 40, 30), surface=Surface(color=(0.8, 0.4, 0.1), roughness=0.95))
    color = render(Scene([mesh]), camera(), dark, SIZE, np.random.default_rng(0), floor=False).color[15:25, 15:35]
    albedo = 0.9 * np.array([0.8, 0.4, 0.1]) + 0.015
    np.testing.assert_allclose(color.mean((0, 1)), 0.5 * albedo + 0.04 * 0.5, rtol=0.05)


def test_a_texture_lies_upright_on_its_object(embree):
    rows = np.zeros((8, 1, 3), np.uint8)
    rows[:4] = 255
    color = draw(polygon(rectangle(10, 8, 40, 32), surface=Surface(texture=rows))).color
    assert color[12:18, 20:30].mean() > 3 * color[22:28, 20:30].mean()


def test_the_floor_is_dark_below_the_object_alone(embree):
    ground = np.float32([[-0.2, 0.02, -0.2], [0.2, 0.02, -0.2], [0.2, 0.02, 0.2], [-0.2, 0.02, 0.2]])
    triangles = ground[[[0, 1, 2], [0, 2, 3]]]
    mesh = Mesh(triangles, np.ones_like(triangles), np.zeros((2, 3, 2)), np.zeros(2, int), [Surface()])
    slope = np.sqrt(0.5)
    axes = np.array([[1, 0, 0], [0, -slope, slope], [0, -slope, -slope]])
    above = Camera(np.array([0, 2.0, 2.0]), axes, 60.0, (SIZE[1] / 2, SIZE[0] / 2))
    x, y, _ = above.project(np.array([0.0, 0, 0]))
    shade = render(Scene([mesh]), above, plain_light(), SIZE, np.random.default_rng(0)).shade
    assert shade.shape == (*SIZE, 3)
    assert shade[round(y), round(x)].max() < 0.25
    assert shade[-1, 0].min() > 0.95
    flat = render(Scene([mesh]), above, plain_light(), SIZE, np.random.default_rng(0), floor=False).shade
    assert (flat == 1).all()


def test_equal_seeds_give_equal_pictures(embree):
    mesh = polygon(rectangle(10.2, 8, 40, 32))
    one, two = (draw(mesh, floor=True) for _ in range(2))
    for name in ("color", "through", "coverage", "shade"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_linear_light():
    np.testing.assert_allclose(to_linear(np.array([0, 255], np.uint8)), [0, 1])
    assert to_linear(np.array([128], np.uint8))[0] == pytest.approx((128 / 255) ** 2.2, rel=1e-4)
