from PIL import Image

from lav2.data.images import check_images, load_image


def test_images(tmp_path):
    Image.new("P", (5, 4)).save(tmp_path / "good.png")
    assert load_image(tmp_path / "good.png").mode == "RGB"
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not found")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "folder.png").mkdir()
    bad = {}
    names = ["good.png", "whole.jpg", "cut.jpg", "text.jpg", "empty.png", "cut.png", "folder.png", "none.jpg"]
    check_images([tmp_path / name for name in names], lambda path, reason: bad.update({path.name: reason}))
    assert bad == dict.fromkeys(names[2:7], "broken image") | {"none.jpg": "missing image"}
