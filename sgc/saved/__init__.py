"""Files of compiled losses: a program as data, its tensors as bytes; read without Pyro and without the model's code.

Here belongs what a file holds, how it is written (``saving.py``) and read (``loading.py``), and the module that a file
becomes (``loaded_loss.py``). What reads a file imports neither Pyro nor what imports it. And how a loss is compiled
ahead of time (``packaging.py``): for that it is saved and loaded, so that a package is of what a file holds.

**The file** is a zip archive, nothing in it compressed, with the SHA-256 of all that comes before it as its comment:

- ``manifest.json``: the number of the format, the versions of sgc and torch, of each tensor its dtype, shape and
  strides, the names under which ``named_parameters()`` and ``named_buffers()`` show them, the state of an optimizer.
- ``programs/0.json`` and so on, one for each specialization that fits what is around the model now: how arguments are
  put together, what is asked of them (shapes, dtypes, which sizes may differ, values that Python read), the stochastic
  computation graph, and fx graphs: of loss and gradients, of the loss alone, of the guide's samples, of the checks.
- ``tensors/0`` and so on: the elements of each tensor, as they lie in memory.

**Why not torch.export's own format.** ``torch.export.save`` (2.11 to 2.13) writes sample inputs, and tensors that are
not plain, as pickles, and ``torch.export.load`` reads them with ``weights_only=False``; it resolves any dotted name
below ``torch`` as an operator, and hands texts of the file to ``sympy.sympify``, which evaluates them. Its own
documentation says never to load a file of unknown origin. And its programs have no backward, which is in the graph
here.
The tensors could lie in a file of safetensors; it would be one more dependency for what thirty lines do.

**Why a file cannot run anything.** Nothing is unpickled, imported by a name, or evaluated. A node of an fx graph names
an operator out of those that ``operators.py`` allows: of torch's own, on tensors and numbers, none that reads files,
swaps memory or leaves it unchecked. Names of nodes become Python identifiers and nothing else, for fx writes Python of
them. What is compressed would take more memory than the file: it is refused.

**Versions.** Files of format 1 stay readable (``tests/saved/format_1.sgc`` is one). A reader refuses a format that it
does not know.
"""
