r"""Embed a folder of shards into a gallery; an interrupted run resumes.

python serve_onnx/build_gallery.py --bundle bundles/quickstart --catalogue data/wardrobe \
    --out galleries/wardrobe
python serve_onnx/build_gallery.py --bundle bundles/quickstart --catalogue data/wardrobe \
    --out galleries/wardrobe --engine milvus --uri http://localhost:19530
python serve_onnx/build_gallery.py --bundle bundles/shop --catalogue data/shop \
    --out galleries/shop --fields items.csv --id-column sku
RAY_ADDRESS=auto python serve_onnx/build_gallery.py --bundle bundles/shop --catalogue data/shop \
    --out galleries/shop --engine-embed ray --device cuda

Installed from a wheel, the command is called adde-gallery.
"""

from adde.serving.programs.gallery import main

if __name__ == "__main__":
    main()
