"""Text to token batches: sources, tokenizers, corpora, windows."""

from statescan.data.chat import ChatTemplate, read_examples
from statescan.data.corpus import Corpus, encode_documents, load_corpora
from statescan.data.sources import Document, find_files, read_documents, split_documents
from statescan.data.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer, load_tokenizer
from statescan.data.windows import Batch, Windows, held_out_batches

__all__ = [
    "Batch",
    "ByteTokenizer",
    "ChatTemplate",
    "Corpus",
    "Document",
    "JsonTokenizer",
    "Tokenizer",
    "Windows",
    "encode_documents",
    "find_files",
    "held_out_batches",
    "load_corpora",
    "load_tokenizer",
    "read_documents",
    "read_examples",
    "split_documents",
]
