"""How the large products are computed: attention over the tree, the labels' head, fused layers."""
