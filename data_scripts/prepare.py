"""From a checkout, the same as `python -m resmlp_mt.prepare`: a corpus becomes binarised data.

python data_scripts/prepare.py wmt14_en_de --output DIR
"""

from resmlp_mt.prepare import main

if __name__ == "__main__":
    main()
