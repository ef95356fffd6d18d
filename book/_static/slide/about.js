window.slide = {
  "width": 4096,
  "height": 4096,
  "tile": 512,
  "levels": 5,
  "command": "python -m nca_lib canvas tissue-cascade --size 4096x4096 --steps 8 --seed 5 --bf16 --out slide.zarr"
};
