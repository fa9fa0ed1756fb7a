"""From a state dict of another program to a plain Llama folder, described by a mapping file and proved by logits.

| module | noun |
|---|---|
| `mapping.py` | what a mapping file may say: names, layouts of projections, constants |
| `source.py`, `llama2c.py` | the file as tensors and the constants written beside them; llama2.c's own binary form |
| `architecture.py` | the constants of one model, from the command line, the file, the mapping and the shapes |
| `convert.py` | the file's tensors as Llama's |
| `direct.py` | the model computed from the file's own tensors, in its own conventions |
| `source_tokenizers.py` | tokenizers of other programs, each with a direct encoder to compare with |
| `importer.py` | the import: convert, prove, put in place |
"""
