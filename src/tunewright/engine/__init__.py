"""How the steps are taken: trees and passes of integers, then tensors."""
