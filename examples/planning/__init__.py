"""Models and layouts to plan with: what they would cost on a server that nobody in the room owns.

Shapes alone: nothing here makes an array. `models.py` public configurations; `layout.py` a mesh
and what lies where; `parameters.py` shapes; `layers.py`, `experts.py`, `forward.py` the model;
`training.py` a step of AdamW; `decoding.py` a token for everybody; `figures.py` what tables say.
"""
