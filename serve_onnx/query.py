r"""Answer "this item, but with these values" from a bundle; needs neither torch nor a GPU.

python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe --split test \
    --image x.jpg --set top_colour=red --picture answer.png
python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe \
    --item 001949-0 --set headwear=cap --set headwear_colour=red --must headwear --k 5 --json
python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe \
    --item 001949-0 --unset top_colour=black --more layer_colour=red --weight top_kind=2
python serve_onnx/query.py --bundle bundles/outfits --gallery data/wardrobe-outfits \
    --item 000012-top --with 000012-shoes --complete trousers
python serve_onnx/query.py --bundle bundles/wardrobe --gallery data/wardrobe \
    --item 001949-0 --set headwear_colour=red --draw drawn.png

Installed from a wheel, the command is called adde-query.
"""

from adde.serving.programs.query import main

if __name__ == "__main__":
    main()
