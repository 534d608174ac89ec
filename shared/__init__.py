"""What the API's half and the workers' half agree on. Imports nothing of ours outside this package.

Modules in here import each other relatively, so that the wheel can ship the same files a second time as the
package ``scenefleet`` (docs/decisions/0001).
"""
