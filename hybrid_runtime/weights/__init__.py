"""Weights in files, without torch: safetensors files, Hugging Face folders, converting them."""
