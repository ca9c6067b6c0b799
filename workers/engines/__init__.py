"""Third-party engines, each behind one file: vllm_engine, deepspeed_engine, hf_models, lora (peft)."""
