"""Train S4 to read handwritten digits one pixel at a time: 64 steps of 1 number. About a minute on two cores.

    pip install 'shoestring[vision]'
    python examples/digits_s4.py

Writes digits_s4.html: how the loss fell, and some digits that the model got wrong.
"""

import sys

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch.nn.functional import cross_entropy

from shoestring.data.pixel_sequences import digit_pixels
from shoestring.data.shuffled import ShuffledBatches
from shoestring.layers import S4
from shoestring.models.sequence_classifier import SequenceClassifier
from shoestring.training import Trainer, TrainingPlan

task = digit_pixels()
torch.manual_seed(0)
model = SequenceClassifier(S4, d_input=1, d_model=64, n_layers=2, n_classes=10, dropout=0.1)
plan = TrainingPlan(steps=800, learning_rate=1e-2, weight_decay=0.05, warmup_steps=80)
batches = ShuffledBatches(task.train.x, task.train.labels, batch_size=50)
record = Trainer(model, lambda net, batch: cross_entropy(net(batch[0]), batch[1]), plan, progress=True).run(
    batches
)

with torch.no_grad():
    guesses = model(task.test.x).argmax(-1)
wrong = (guesses != task.test.labels).nonzero().flatten()[:5].tolist()
print(f"test accuracy {1 - (guesses != task.test.labels).double().mean():.1%} after {record.seconds:.0f} s")

titles = ["loss", *(f"{int(task.test.labels[i])} read as {int(guesses[i])}" for i in wrong)]
figure = make_subplots(rows=1, cols=6, column_widths=[3, 1, 1, 1, 1, 1], subplot_titles=titles)
figure.add_trace(go.Scatter(y=record.losses, showlegend=False), row=1, col=1)
for column, i in enumerate(wrong, start=2):
    picture = go.Heatmap(z=task.test.images[i, 0].flip(0), colorscale="gray", showscale=False)
    figure.add_trace(picture, row=1, col=column)
figure.write_html(sys.argv[1] if len(sys.argv) > 1 else "digits_s4.html")
