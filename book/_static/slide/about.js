window.slide = {
  "width": 1536,
  "height": 1536,
  "tile": 512,
  "levels": 4,
  "command": "python -m nca_lib canvas tissue-diff-nca --size 1536x1536 --steps 10 --seed 14 --bf16 --out slide.zarr"
};
