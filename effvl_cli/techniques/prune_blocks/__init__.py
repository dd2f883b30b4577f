"""Direct block removal in residual networks (Wu, Davoodi and Hu, arXiv 2312.16904)."""
